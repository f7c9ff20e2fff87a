"""Rows of different sizes: a step is that of its rows one at a time, in every family."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kit.families import FAMILIES
from kit.training import CPU

from dbray import bases
from dbray.method.methods import method_of
from dbray.planning.checks import check_job
from dbray.spec.recipe import Recipe
from dbray.spec.resources import Resources
from dbray.training import losses
from dbray.training.batches import Share, draw_batches
from dbray.training.data import Latents, TrainingData, encode_subject
from dbray.training.engine import make_engine
from dbray.training.loop import finetune

SIZES = [(32, 32), (24, 40), (40, 24), (24, 40)]
"""Heights and widths: three buckets."""
RECIPE = Recipe.model_validate({
    "method": {"kind": "lora", "rank": 2}, "steps": 2, "batch_size": 3, "crop": "bucket",
    "resolution": 32, "learning_rate": 1e-3,
})  # fmt: skip


def data_of(backbone):
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in SIZES]
    views, views_of_image = encode_subject(backbone, [[one] for one in pixels], RECIPE)
    method = method_of(RECIPE.method)
    square = np.stack([pixels[0], pixels[0][::-1]])
    return TrainingData(
        "rex", views, views_of_image,
        method.condition(backbone, RECIPE, [f"a zb dog {number}" for number in range(4)]),
        Latents(*backbone.encode(square)), method.condition(backbone, RECIPE, ["a dog"]),
    )  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_is_that_of_its_rows_alone(tmp_path, name):
    base = bases.resolve(str(FAMILIES[name].build(tmp_path / "base")))
    backbone = bases.load(base, bases.Compute(resolution=32))
    data = data_of(backbone)
    batches = draw_batches(data, RECIPE, backbone.schedule, 0, Share())
    assert len(batches) > 1
    assert sum(len(batch.weights_B) for batch in batches) == 6
    alone = together = 0.0
    for batch in batches:
        predicted = backbone.denoise(batch.noisy_BCHW, batch.timesteps_B, batch.condition)
        row_losses = losses.row_losses(base.family.targeted(predicted), batch.target_BCHW)
        together += float(losses.prior_preservation_loss(row_losses, batch.weights_B))
        for row in range(len(batch.weights_B)):
            one = slice(row, row + 1)
            predicted = backbone.denoise(
                batch.noisy_BCHW[one], batch.timesteps_B[one], batch.condition[one]
            )
            loss = losses.row_losses(base.family.targeted(predicted), batch.target_BCHW[one])
            alone += float((loss * batch.weights_B[one]).sum())
    assert together == pytest.approx(alone, rel=1e-4)
    weights = torch.cat([batch.weights_B for batch in batches])
    is_prior = torch.cat([batch.is_prior_B for batch in batches])
    if backbone.schedule.weights(batches[0].timesteps_B, RECIPE) is None:
        assert float(weights[is_prior].sum()) == pytest.approx(1.0)
        assert float(weights[~is_prior].sum()) == pytest.approx(1.0)


def test_views_keep_their_sizes_and_the_loss_counts_every_row(tmp_path):
    base = bases.resolve(str(FAMILIES["sdxl"].build(tmp_path / "base")))
    backbone = bases.load(base, bases.Compute(resolution=32))
    data = data_of(backbone)
    shapes = [tuple(mean.shape[1:]) for mean in data.views.mean_VCHW]
    assert shapes == [(height // 4, width // 4) for height, width in SIZES]
    network = method_of(RECIPE.method).network(backbone, RECIPE)
    engine = make_engine(network, RECIPE, Resources(), CPU)
    first, second = finetune(engine, backbone.schedule, data, RECIPE)
    assert (first.step, second.step) == (1, 2)
    assert first.loss == pytest.approx(first.instance_loss + first.prior_loss)
    assert np.isfinite(second.loss)


def test_zero_refuses_buckets(tmp_path, tiny_base):
    from kit.worlds import load_job

    job = load_job(tmp_path, tiny_base, {"ace": "cat"}, recipe={"crop": "bucket"},
                   resources={"zero_stage": 1})  # fmt: skip
    [error] = check_job(job).errors
    assert "several passes, which ZeRO does not" in error.what


def test_several_gpus_refuse_buckets(tmp_path, tiny_base):
    from kit.worlds import load_job

    job = load_job(tmp_path, tiny_base, {"ace": "cat"}, recipe={"crop": "bucket"},
                   resources={"gpus_per_subject": 2})  # fmt: skip
    [error] = check_job(job).errors
    assert "whose number differs between GPUs" in error.what


def test_a_table_of_positions_that_is_too_short_refuses_buckets(tmp_path):
    base = bases.resolve(str(FAMILIES["sd3"].build(tmp_path / "base")))
    most = base.layout.config("transformer")["pos_embed_max_size"] * 2 * 4
    recipe = RECIPE.model_copy(update={"resolution": most})
    [(what, _)] = base.family.unfit(base.layout, recipe)
    assert "longer sides than the base's table of positions" in what
    assert not list(base.family.unfit(base.layout, RECIPE))
