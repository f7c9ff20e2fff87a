"""The loop: shares of a batch add up, restarts continue bit for bit, subjects are independent."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from dbray import bases
from dbray.errors import Diverged
from dbray.method.methods import method_of
from dbray.spec.recipe import Recipe
from dbray.spec.resources import Resources
from dbray.training.batches import Share, draw_batches
from dbray.training.data import Latents, TrainingData, encode_subject, instance_prompts
from dbray.training.engine import make_engine
from dbray.training.loop import finetune

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def backbone(tiny_base):
    return bases.load(bases.resolve(str(tiny_base)))


@pytest.fixture(scope="module")
def schedule(backbone):
    return backbone.schedule


def make_data(backbone, subject_id="rex", recipe=None, with_prior=True):
    recipe = recipe or Recipe()
    pixels = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)
    views, views_of_image = encode_subject(backbone, [[image] for image in pixels], recipe)
    condition = backbone.tokenize if recipe.train_text_encoder else backbone.condition
    class_pixels = np.random.default_rng(1).integers(0, 255, (5, 32, 32, 3), dtype=np.uint8)
    return TrainingData(
        subject_id,
        views,
        views_of_image,
        condition(instance_prompts("zb", "dog", None, Recipe(), 3)),
        Latents(*backbone.encode(class_pixels)) if with_prior else None,
        condition(["a dog"]),
    )


def make_test_engine(backbone, recipe):
    return make_engine(network_of(backbone, recipe), recipe, Resources(), CPU)


def network_of(backbone, recipe=None):
    """Return a copy of the network of a full fine-tuning: the shared backbone stays unchanged."""
    recipe = recipe or Recipe()
    return copy.deepcopy(method_of(recipe.method).network(backbone, recipe))


def train(backbone, schedule, recipe, **kwargs):
    engine = make_test_engine(backbone, recipe)
    curve = finetune(engine, schedule, make_data(backbone, recipe=recipe), recipe, **kwargs)
    return engine.weights(), curve


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_training_moves_every_layer_and_lowers_the_loss(backbone, schedule):
    recipe = Recipe(steps=60, learning_rate=3e-3)
    weights, curve = train(backbone, schedule, recipe)
    before = network_of(backbone).state_dict()
    assert weights.keys() == before.keys()
    unmoved = [name for name, value in weights.items() if torch.equal(value, before[name])]
    assert unmoved == []
    losses = [point.loss for point in curve]
    assert [point.step for point in curve] == list(range(1, 61))
    assert np.mean(losses[-15:]) < np.mean(losses[:15])


def test_training_equals_the_papers_plain_loop(backbone, schedule):
    """Equation 2 row by row, with diffusers and torch: only the random draws are shared."""
    from diffusers import DDPMScheduler

    recipe = Recipe(steps=5, learning_rate=1e-3, weight_decay=0.1, prior_weight=0.7, batch_size=2)
    data = make_data(backbone, recipe=recipe)
    noiser = DDPMScheduler(trained_betas=betas_of(schedule.alphas_cumprod_T))
    trained = network_of(backbone)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-3, weight_decay=0.1)
    losses = []
    for step in range(5):
        batch = draw_batches(data, recipe, schedule, step, Share())[0]
        sums = {False: 0.0, True: 0.0}
        for row in range(4):
            noise, at = batch.target_BCHW[row : row + 1], batch.timesteps_B[row : row + 1]
            level = noiser.alphas_cumprod[at].view(1, 1, 1, 1)
            latents = (batch.noisy_BCHW[row : row + 1] - (1 - level).sqrt() * noise) / level.sqrt()
            condition = data.prior_prompt if row >= 2 else batch.condition[row : row + 1]
            prediction = trained(noiser.add_noise(latents, noise, at), at, condition.tensors)
            sums[row >= 2] += torch.nn.functional.mse_loss(prediction, noise) / 2
        loss = sums[False] + 0.7 * sums[True]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), recipe.max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
    weights, curve = train(backbone, schedule, recipe)
    assert [point.loss for point in curve] == pytest.approx(losses, rel=1e-4)
    for name, value in trained.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=2e-4)


def test_offset_noise_is_added_and_predicted(backbone, schedule):
    data = make_data(backbone)
    plain, offset = (
        draw_batches(data, Recipe(noise_offset=size), schedule, 3, Share())[0]
        for size in (0.0, 0.5)
    )
    moved = offset.target_BCHW - plain.target_BCHW
    torch.testing.assert_close(moved, moved[..., :1, :1].expand_as(moved))
    assert len(moved[..., 0, 0].flatten().unique()) == 2 * 4, "each row and channel by itself"
    assert torch.equal(offset.timesteps_B, plain.timesteps_B)
    alphas = schedule.alphas_cumprod_T[plain.timesteps_B].view(-1, 1, 1, 1)
    difference = offset.noisy_BCHW - plain.noisy_BCHW
    torch.testing.assert_close(difference, (1 - alphas).sqrt() * moved)


def test_the_huber_loss_is_used_in_training(backbone, schedule):
    recipe = Recipe(steps=2, learning_rate=1e-3, huber_c=0.1)
    huber, [first, _] = train(backbone, schedule, recipe)
    squared, [other, _] = train(backbone, schedule, recipe.model_copy(update={"huber_c": None}))
    assert not same(huber, squared)
    assert 0 < first.loss < other.loss


def betas_of(alphas_cumprod):
    return (1 - alphas_cumprod / torch.cat([torch.ones(1), alphas_cumprod[:-1]])).numpy()


def test_the_same_inputs_give_the_same_weights(backbone, schedule):
    recipe = Recipe(steps=6, learning_rate=1e-3)
    first, _ = train(backbone, schedule, recipe)
    second, _ = train(backbone, schedule, recipe)
    other, _ = train(backbone, schedule, recipe.model_copy(update={"seed": 1}))
    assert same(first, second)
    assert not same(first, other)


def test_a_warm_engine_trains_like_a_fresh_one(backbone, schedule):
    recipe = Recipe(steps=5, learning_rate=1e-3)
    alone, _ = train(backbone, schedule, recipe)
    engine = make_test_engine(backbone, recipe)
    finetune(engine, schedule, make_data(backbone, "fido"), recipe)
    engine.reset()
    finetune(engine, schedule, make_data(backbone, "rex"), recipe)
    assert same(engine.weights(), alone)


@pytest.mark.parametrize("stop", [1, 4, 9])
@pytest.mark.parametrize("changes", [
    {}, {"warmup_steps": 3, "rate_schedule": "cosine", "huber_c": 0.1, "noise_offset": 0.1},
])  # fmt: skip
def test_a_restart_continues_bit_for_bit(backbone, schedule, stop, changes):
    recipe = Recipe(steps=10, learning_rate=1e-3, ema_decay=0.9, **changes)
    undisturbed, whole_curve = train(backbone, schedule, recipe)
    saved = {}

    class Killed(Exception):
        pass

    engine = make_test_engine(backbone, recipe)

    def on_step(step, progress):
        if step == stop:
            saved.update(state=copy.deepcopy(engine.state()), progress=progress())
            raise Killed

    data = make_data(backbone)
    with pytest.raises(Killed):
        finetune(engine, schedule, data, recipe, on_step=on_step)
    restarted = make_test_engine(backbone, recipe)
    restarted.load_state(saved["state"])
    curve = finetune(restarted, schedule, data, recipe, resume=saved["progress"])
    assert same(restarted.weights(), undisturbed)
    assert curve == whole_curve


@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
def test_ranks_compute_the_whole_batch_together(backbone, schedule, batch_size, world_size):
    recipe = Recipe(batch_size=batch_size, prior_weight=0.5, min_snr_gamma=5.0)
    data = make_data(backbone)
    whole = draw_batches(data, recipe, schedule, 3, Share())[0]
    found = {}
    for rank in range(world_size):
        part = draw_batches(data, recipe, schedule, 3, Share(rank, world_size))[0]
        for row in range(len(part.weights_B)):
            key = float(part.noisy_BCHW[row].sum())
            found[key] = found.get(key, 0.0) + float(part.weights_B[row]) / world_size
    wanted = {
        float(whole.noisy_BCHW[row].sum()): float(whole.weights_B[row])
        for row in range(2 * batch_size)
    }
    assert found == pytest.approx(wanted)


def test_the_batch_has_instance_and_prior_rows(backbone, schedule):
    recipe = Recipe(batch_size=2)
    data = make_data(backbone)
    batch = draw_batches(data, recipe, schedule, 0, Share())[0]
    assert batch.is_prior_B.tolist() == [False, False, True, True]
    assert torch.equal(batch.condition.tensors["text"][2], data.prior_prompt.tensors["text"][0])
    assert not torch.equal(batch.condition.tensors["text"][0], data.prior_prompt.tensors["text"][0])
    without = draw_batches(make_data(backbone, with_prior=False), recipe, schedule, 0, Share())[0]
    assert without.is_prior_B.tolist() == [False, False]


def test_rows_draw_independent_noise_and_timesteps(backbone, schedule):
    data, recipe = make_data(backbone), Recipe(batch_size=4)
    timesteps = torch.cat(
        [draw_batches(data, recipe, schedule, step, Share())[0].timesteps_B for step in range(200)]
    )
    assert len(timesteps.unique()) > 700
    assert float(timesteps.float().mean()) == pytest.approx(499.5, abs=30)
    batch = draw_batches(data, recipe, schedule, 0, Share())[0]
    assert len({float(row.sum()) for row in batch.target_BCHW}) == 8


def test_flips_and_crops_are_drawn_per_step(backbone, schedule):
    pixels = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3), dtype=np.uint8)
    latents, views_of_image = encode_subject(
        backbone, [[pixels[0], pixels[1]], [pixels[1]]], Recipe(flip=True)
    )
    assert views_of_image == ((0, 1, 2, 3), (4, 5))
    mirrored, _ = backbone.encode(np.ascontiguousarray(pixels[:1, :, ::-1]))
    torch.testing.assert_close(latents.mean_VCHW[2:3], mirrored)


def test_the_text_encoder_is_trained_if_requested(tiny_base, schedule):
    recipe = Recipe(steps=3, learning_rate=1e-3, train_text_encoder=True)
    backbone = bases.load(bases.resolve(str(tiny_base)))
    weights, _ = train(backbone, schedule, recipe)
    before = network_of(backbone, recipe).state_dict()
    moved = {name for name, value in weights.items() if not torch.equal(value, before[name])}
    assert any(name.startswith("text_encoder.") for name in moved)


def test_a_loss_that_is_not_finite_is_an_error(backbone, schedule):
    recipe = Recipe(steps=3)
    data = make_data(backbone, recipe=recipe)
    data.views.mean_VCHW[:] = float("inf")
    with pytest.raises(Diverged, match="learning_rate"):
        finetune(make_test_engine(backbone, recipe), schedule, data, recipe)


def test_captions_replace_the_default_prompt():
    assert instance_prompts("zb", "dog", None, Recipe(), 2) == ["a zb dog", "a zb dog"]
    chosen = Recipe(prompt="a photo of a {subject}")
    assert instance_prompts("zb", "dog", None, chosen, 1) == ["a photo of a zb dog"]
    assert instance_prompts("zb", "dog", ["{subject} asleep", "a {class}"], chosen, 2) == [
        "zb dog asleep",
        "a dog",
    ]
