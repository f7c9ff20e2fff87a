"""A published cascade is generated from, served, exported, and read back by diffusers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit.families.super_resolution import SUPER_RESOLUTION, build_cascade
from kit.records import record
from kit.training import IDENTIFIER, Trained, recipe_of
from PIL import Image

from dbray import bases
from dbray.bases.defaults import fill_super_resolution
from dbray.cli import main
from dbray.errors import BaseError
from dbray.export import FORMATS, why_not
from dbray.export.source import Source
from dbray.method.stages import as_second
from dbray.records.models import Registry
from dbray.serving.messages import Answer, Ask, Refusal, Share
from dbray.serving.options import ServeOptions
from dbray.serving.replica.replica import Replica
from dbray.spec.super_resolution import SuperResolution
from dbray.storage.store import Store
from dbray.subjects.images import decode_png

METHODS: dict[str, Any] = {"full": "full", "lora": {"kind": "lora", "rank": 4, "alpha": 6}}
MODELS = [(name, method) for name in SUPER_RESOLUTION for method in METHODS]
PROMPT = f"a {IDENTIFIER} dog"
STEPS, GUIDANCE, SEED = 2, 3.0, 7
LEVEL, ENLARGING_STEPS, ENLARGING_GUIDANCE = 30, 3, 2.0


@dataclass(frozen=True)
class World:
    """A cascade, and a storage with a model of each method, named after it."""

    name: str
    base: Path
    storage: Path

    def generate(self, model: str, out: Path, *more: str) -> np.ndarray:
        """What `dbray generate` draws."""
        given = ["--steps", str(STEPS), "--guidance", str(GUIDANCE), "--seed", str(SEED)]
        given += ["--registry", str(self.storage), "--base", str(self.base), "-o", str(out)]
        assert main(["generate", model, PROMPT, *given, *more]) == 0
        [file] = out.glob("*.png")
        with Image.open(file) as image:
            return np.asarray(image).astype(int)

    def draw(self, pipe: Any, enlarger: Any, level: int = LEVEL) -> np.ndarray:
        """What diffusers' two pipelines draw."""
        generator = torch.Generator().manual_seed(SEED)
        image = pipe(
            prompt=PROMPT, num_inference_steps=STEPS, guidance_scale=GUIDANCE, clean_caption=False,
            generator=generator,
        ).images[0]  # fmt: skip
        image = enlarger(
            prompt=PROMPT, image=image, num_inference_steps=ENLARGING_STEPS, noise_level=level,
            guidance_scale=ENLARGING_GUIDANCE, generator=torch.Generator().manual_seed(SEED),
            **SUPER_RESOLUTION[self.name].options,
        ).images[0]  # fmt: skip
        return np.asarray(image).astype(int)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Make the world of a cascade once."""
    made: dict[str, World] = {}

    def world_of(name: str) -> World:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = World(name, build_cascade(folder / "base", name), folder / "runs")
            for method, kind in METHODS.items():
                publish(made[name], method, recipe_of(kind, steps=2, learning_rate=0.05))
        return made[name]

    return world_of


def publish(world: World, name: str, recipe: Any) -> None:
    base = bases.resolve(str(world.base))
    stage = SuperResolution(
        recipe=recipe, noise_level=LEVEL, steps=ENLARGING_STEPS, guidance=ENLARGING_GUIDANCE,
        sampler="ddpm",
    )  # fmt: skip
    second = Trained(base.super_resolution, recipe, noise_level=LEVEL)
    files = {**Trained(base, recipe).files, **as_second(second.files)}
    model = record(
        name, base=base.name, base_digest=base.digest, recipe=recipe, identifier=IDENTIFIER,
        files=tuple(files), super_resolution=fill_super_resolution(base, stage),
        super_resolution_digest=base.super_resolution.digest,
    )  # fmt: skip
    Registry(Store(str(world.storage))).publish(model, files)


def load(line: str) -> tuple[Any, Any]:
    found: dict[str, Any] = {}
    exec(line, found)
    return found["pipe"], found["enlarger"]


@pytest.mark.parametrize(("name", "method"), MODELS)
def test_exports_draw_through_both_stages_as_dbray_does(world, tmp_path, capsys, name, method):
    here = world(name)
    drawn = here.generate(method, tmp_path / "out")
    assert drawn.shape == (32, 32, 3)
    backbone = bases.load(bases.resolve(str(here.base)), bases.Compute(then=bases.Compute()))
    for one in ("diffusers", "lora") if method == "lora" else ("diffusers",):
        given = [method, "--format", one, "-o", str(tmp_path / one), "--registry",
                 str(here.storage)]  # fmt: skip
        assert main(["models", "export", *given]) == 0
        pipe, enlarger = load(capsys.readouterr().out.splitlines()[-1])
        if one == "lora":
            pipe.scheduler = backbone.scheduler("ddpm", STEPS)
            enlarger.scheduler = backbone.super_resolution.scheduler("ddpm", STEPS)
        assert np.abs(here.draw(pipe, enlarger) - drawn).max() <= 1, one
        assert np.abs(here.draw(pipe, enlarger, level=300) - drawn).max() > 4
        card = (tmp_path / one / "README.md").read_text()
        assert f"enlarger('a {IDENTIFIER} dog', image=image, noise_level={LEVEL}" in card.replace(
            "a photo of ", ""
        )


@pytest.mark.parametrize(("name", "method"), MODELS)
def test_each_stage_of_a_model_changes_the_image(world, tmp_path, name, method):
    here = world(name)
    registry = Registry(Store(str(here.storage)))
    found = registry.find(method)
    source = Source(bases.resolve(str(here.base)), found, registry.weights(found, tmp_path))
    whole = source.backbone.resident
    assert {part.startswith("super_resolution_") for part in whole.changed} == {True, False}
    possible = {one for one in FORMATS if why_not(one, source) is None}
    assert possible == ({"diffusers", "lora"} if method == "lora" else {"diffusers"})


@pytest.mark.parametrize("name", SUPER_RESOLUTION)
def test_a_replica_serves_the_image_of_generate_and_the_base_again_after_it(world, tmp_path, name):
    here = world(name)
    replica = Replica(ServeOptions(registry=str(here.storage), base=str(here.base), device="cpu"))
    try:
        untouched = serve(replica, here, "base")
        for model in METHODS:
            drawn = here.generate(model, tmp_path / model)
            assert np.abs(serve(replica, here, model) - drawn).max() <= 1, model
            assert np.abs(drawn - untouched).max() > 4
        assert np.array_equal(serve(replica, here, "base"), untouched)
        assert serve(replica, here, "lora", size=(48, 32)).shape == (32, 48, 3)
        refused = serve(replica, here, "full+lora")
        assert isinstance(refused, Refusal)
    finally:
        replica.close()


def serve(replica: Replica, here: World, model: str, **changes: Any) -> Any:
    models, stage = (), None
    if model != "base":
        found = [Registry(Store(str(here.storage))).find(one) for one in model.split("+")]
        models = tuple(Share(one.id, one.revision) for one in found)
        stage = found[0].super_resolution
    ask = Ask(models, tenant="t", prompt=PROMPT, deadline_seconds=60.0, seeds=(SEED,),
              sampling={"steps": STEPS, "guidance": GUIDANCE}, super_resolution=stage,
              **changes)  # fmt: skip
    answer = asyncio.run(replica.generate(ask))
    if isinstance(answer, Refusal):
        return answer
    assert isinstance(answer, Answer)
    [image] = answer.images
    return decode_png(image).astype(int)


def test_a_model_does_not_fit_another_second_stage(world, tmp_path):
    here = world("x4_upscaler")
    build_cascade(tmp_path / "other", "x4_upscaler")
    file = tmp_path / "other" / "super_resolution" / "low_res_scheduler" / "scheduler_config.json"
    file.write_text(file.read_text().replace("0.02", "0.03"))
    other = World(here.name, tmp_path / "other", here.storage)
    registry = Registry(Store(str(here.storage)))
    base = bases.resolve(str(other.base))
    assert not registry.find("full").fits(base.digest, base.super_resolution.digest)
    given = ["generate", "full", PROMPT, "--registry", str(here.storage), "--base", str(other.base)]
    assert main([*given, "-o", str(tmp_path / "out")]) == BaseError.exit_code
