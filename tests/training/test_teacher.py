"""The untouched base as teacher: its predictions are the targets of the class rows.

Run as a script, this file is one rank: `test_teacher.py BASE FOLDER RANK WORLD_SIZE` trains under
every ZeRO stage and leaves the losses in FOLDER/RANK.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from dbray import bases
from dbray.method.methods import method_of
from dbray.spec.recipe import Recipe
from dbray.spec.resources import Resources
from dbray.training.batches import Share, draw_batches
from dbray.training.data import TrainingData, encode_subject, instance_prompts
from dbray.training.engine import make_engine
from dbray.training.loop import Progress, finetune
from dbray.training.teacher import lesson_bytes, teach

ROOT = Path(__file__).parents[2]
CPU, ALONE = torch.device("cpu"), Share()
IDENTIFIER, SIDE = "zb", 32
STAGES, NUM_RANKS = (0, 2, 3), 2
METHODS = {
    "full": {"method": "full"},
    "lora": {"method": {"kind": "lora", "rank": 4}},
    "full with tokens": {"method": "full", "identifier_rate": 0.02},
    "textual_inversion": {"method": "textual_inversion"},
}


@pytest.fixture(scope="module")
def base(tiny_base):
    return bases.resolve(str(tiny_base))


@pytest.fixture(scope="module")
def flow_base(tmp_path_factory):
    from kit.families import FAMILIES

    folder = FAMILIES["sd3"].build(tmp_path_factory.mktemp("sd3") / "base", deep=False)
    return bases.resolve(str(folder))


def recipe_of(**fields) -> Recipe:
    usual = {"steps": 4, "learning_rate": 1e-2, "resolution": SIDE}
    return Recipe.model_validate(usual | fields)


class Lane:
    """What a lane does with a subject."""

    def __init__(self, base, recipe, zero_stage=0, share=ALONE):
        self.recipe, self.share = recipe, share
        self.backbone = bases.load(base, bases.Compute(resolution=SIDE))
        self.method = method_of(recipe.method)
        network = self.method.network(self.backbone, recipe)
        rates = self.method.rates(network, recipe)
        pixels = np.random.default_rng(0).integers(0, 255, (3, SIDE, SIDE, 3), dtype=np.uint8)
        views, views_of_image = encode_subject(self.backbone, [[one] for one in pixels], recipe)
        prompts = instance_prompts(IDENTIFIER, "dog", None, recipe, 3)
        self.data = TrainingData(
            "rex", views, views_of_image, self.condition(prompts), None, self.condition(["a dog"])
        )
        self.engine = make_engine(network, recipe, Resources(zero_stage=zero_stage), CPU, rates)
        self.begin()

    def begin(self):
        self.engine.reset()
        self.engine.assign(self.method.begin(self.engine.module, IDENTIFIER))

    def condition(self, prompts):
        return self.method.condition(self.backbone, self.recipe, prompts)

    def teach(self, first=0):
        schedule = self.backbone.schedule
        return teach(self.engine, schedule, self.data, self.recipe, share=self.share, first=first)

    def train(self, data, resume=None, on_step=None):
        return finetune(
            self.engine, self.backbone.schedule, data, self.recipe, share=self.share,
            resume=resume or Progress(), on_step=on_step, after_step=self.method.after_step,
        )  # fmt: skip


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["base", "flow_base"])
def test_lessons_are_what_the_untouched_base_predicts_for_the_class_prompt(request, family, method):
    base = request.getfixturevalue(family)
    recipe = recipe_of(batch_size=2, **METHODS[method])
    lane = Lane(base, recipe)
    taught = lane.teach()
    untouched = bases.load(base, bases.Compute(resolution=SIDE))
    for step in range(recipe.steps):
        batch = draw_batches(taught, recipe, untouched.schedule, step, Share())[0]
        assert batch.is_prior_B.tolist() == [False, False, True, True]
        expected = untouched.denoise(
            batch.noisy_BCHW[2:], batch.timesteps_B[2:], untouched.condition(["a dog"] * 2)
        )
        torch.testing.assert_close(batch.target_BCHW[2:], expected, rtol=1e-3, atol=1e-3)
        assert torch.equal(batch.target_BCHW[2:], taught.lessons[step])


def test_class_rows_are_photographs_of_the_subject_with_noise_of_their_own(base):
    recipe = recipe_of(batch_size=2)
    lane = Lane(base, recipe)
    flat = replace(lane.data.views, std_VCHW=lane.data.views.std_VCHW * 0)
    lane.data = replace(lane.data, views=flat)
    taught, schedule = lane.teach(), lane.backbone.schedule
    plain = draw_batches(replace(taught, lessons={}), recipe, schedule, 1, Share())[0]
    batch = draw_batches(taught, recipe, schedule, 1, Share())[0]
    assert torch.equal(batch.target_BCHW[:2], plain.target_BCHW[:2])
    assert len(batch.timesteps_B.unique()) == 4
    alphas = schedule.alphas_cumprod_T[batch.timesteps_B].view(-1, 1, 1, 1)
    latents = (batch.noisy_BCHW - (1 - alphas).sqrt() * plain.target_BCHW) / alphas.sqrt()
    for row in range(4):
        gaps = (flat.mean_VCHW - latents[row]).abs().amax(dim=(1, 2, 3))
        assert float(gaps.min()) < 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_nothing_has_drifted_at_the_first_step(base, method):
    recipe = recipe_of(**METHODS[method])
    lane = Lane(base, recipe)
    first, *later = lane.train(lane.teach())
    assert first.prior_loss < 1e-9  # the rows beside them round otherwise
    assert first.instance_loss > 0
    if method != "textual_inversion":  # nothing but the identifier moves
        assert later[-1].prior_loss > 0


def test_a_taught_model_keeps_what_the_class_prompt_means(base):
    def drift(prior_weight):
        recipe = recipe_of(steps=40, learning_rate=2e-3, prior_weight=prior_weight)
        lane = Lane(base, recipe)
        taught = lane.teach()
        lane.train(taught)
        latents = torch.randn(8, *lane.backbone.latent_shape(), generator=torch.Generator())
        asked = latents, torch.arange(8) * 120, lane.backbone.condition(["a dog"] * 8)
        return float((lane.backbone.denoise(*asked) - untouched.denoise(*asked)).square().mean())

    untouched = bases.load(base, bases.Compute(resolution=SIDE))
    assert drift(5.0) < 0.5 * drift(0.0)


@pytest.mark.parametrize("method", METHODS)
def test_a_restart_continues_bit_for_bit(base, method):
    recipe = recipe_of(steps=6, ema_decay=0.9, warmup_steps=2, **METHODS[method])
    lane, saved = Lane(base, recipe), {}

    def on_step(step, progress):
        if step == 3:
            saved.update(state=lane.engine.state(), progress=progress())

    curve = lane.train(lane.teach(), on_step=on_step)
    whole = lane.engine.weights()
    lane.begin()
    taught = lane.teach(first=3)
    assert sorted(taught.lessons) == [3, 4, 5]
    lane.engine.load_state(saved["state"])
    assert lane.train(taught, resume=saved["progress"]) == curve
    assert same(lane.engine.weights(), whole)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_every_rank_has_the_lessons_of_its_own_rows(base, batch_size, world_size):
    recipe = recipe_of(steps=1, batch_size=batch_size)
    lane = Lane(base, recipe)
    whole, schedule = lane.teach(), lane.backbone.schedule
    everything = draw_batches(whole, recipe, schedule, 0, Share())[0]
    wanted = {float(row.sum()): target for row, target in
              zip(everything.noisy_BCHW, everything.target_BCHW, strict=True)}  # fmt: skip
    sizes = []
    for rank in range(world_size):
        lane.share = Share(rank, world_size)
        taught = lane.teach()
        [batch] = draw_batches(taught, recipe, schedule, 0, lane.share)
        for row, target in zip(batch.noisy_BCHW, batch.target_BCHW, strict=True):
            torch.testing.assert_close(target, wanted[float(row.sum())], rtol=1e-4, atol=1e-5)
        sizes.append(sum(lesson.nbytes for lesson in taught.lessons.values()))
    shape = base.latent_shape(SIDE)
    assert shape == lane.backbone.latent_shape()
    assert lesson_bytes(recipe, shape, world_size) == max(sizes)


# ---- ranks --------------------------------------------------------------------------------------


def be_a_rank(base, folder, rank, world_size):
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=world_size
        )
    found = {}
    for stage in STAGES:
        lane = Lane(bases.resolve(base), recipe_of(steps=3), stage, Share(rank, world_size))
        curve = lane.train(lane.teach())
        found[stage] = [(point.instance_loss, point.prior_loss) for point in curve]
    (folder / f"{rank}.json").write_text(json.dumps(found))
    if world_size > 1:
        dist.barrier()
    dist.destroy_process_group()


def test_ranks_and_zero_are_taught_as_one_rank_is(base, tmp_path):
    """The first of two ranks has no class row."""
    kept = {k: v for k, v in os.environ.items() if k not in ("DS_ACCELERATOR", "LOCAL_RANK")}
    path = f"{ROOT}:{ROOT / 'tests'}"
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(base.folder), str(tmp_path), str(rank), str(NUM_RANKS)],
            env=kept | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(NUM_RANKS)
    ]  # fmt: skip
    try:
        printed = [rank.communicate(timeout=240)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * NUM_RANKS, "\n".join(printed)
    lane = Lane(base, recipe_of(steps=3))
    expected = [(one.instance_loss, one.prior_loss) for one in lane.train(lane.teach())]
    for rank in range(NUM_RANKS):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        for stage in STAGES:
            first, *rest = found[str(stage)]
            assert first[1] < 1e-9
            assert first[0] == pytest.approx(expected[0][0], rel=1e-4)
            np.testing.assert_allclose(rest, expected[1:], rtol=2e-2)


if __name__ == "__main__":
    be_a_rank(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
