"""Families trained by flow matching give the same results as diffusers' pipelines."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from kit.families import FAMILIES
from kit.families.flows import CASES
from kit.training import IDENTIFIER, Trained, contents_of, recipe_of

from dbray import bases
from dbray.bases.flow import FlowSchedule
from dbray.bases.generate import Sampling, generate
from dbray.errors import BaseError
from dbray.method.methods import method_of
from dbray.spec.sections import Previews, Prior
from dbray.training import losses
from dbray.training.batches import Share, draw_batches
from dbray.training.data import Latents, TrainingData

PROMPTS = ["a photo of zb dog", "a cat on the beach wearing a red hat", ""]


VARIANTS = [(name, deep) for name in CASES for deep in (True, False)]


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Build and resolve a base once; load diffusers' pipeline and dbray's backbone from it."""
    built = {}

    def build_once(name, deep=True):
        if (name, deep) not in built:
            folder = FAMILIES[name].build(tmp_path_factory.mktemp(name) / "base", deep)
            base = bases.resolve(str(folder))
            compute = bases.Compute(resolution=32)
            built[name, deep] = FAMILIES[name].load(folder), bases.load(base, compute)
        return built[name, deep]

    return build_once


def rows_of(condition, row):
    """Return one row in the pipeline's form: without its padding."""
    tensors = dict(condition[row].tensors)
    mask = tensors.pop("mask", None)
    if mask is not None:
        tensors["text"] = tensors["text"][mask]
    return tensors


@pytest.mark.parametrize(("name", "deep"), VARIANTS)
def test_conditions_equal_those_of_the_pipeline(build, name, deep):
    pipeline, backbone = build(name, deep)
    together = backbone.condition(PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        with torch.no_grad():
            expected = CASES[name].encode(pipeline, prompt)
        alone, batched = rows_of(backbone.condition([prompt]), 0), rows_of(together, row)
        for key, value in expected.items():
            assert torch.equal(alone[key], value), (prompt, key)
            torch.testing.assert_close(batched[key], value, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "deep", "size"),
    [(*variant, (32, 32)) for variant in VARIANTS] + [(name, True, (32, 48)) for name in CASES],
)
def test_images_equal_those_of_the_pipeline(build, name, deep, size):
    case, (pipeline, backbone) = CASES[name], build(name, deep)
    width, height = size
    expected = FAMILIES[name].draw(
        pipeline, PROMPTS[0], width=width, height=height, num_inference_steps=3, **case.options
    )
    sampling = Sampling("euler", 3, case.guidance)
    [image] = generate(backbone, PROMPTS[:1], [0], sampling, size=size)
    assert image.shape == expected.shape
    # The pipeline's image is not rounded to whole numbers.
    assert np.abs(image - expected * 255).max() <= 0.5 + 255 * 1e-4


@pytest.mark.parametrize("name", CASES)
def test_one_step_goes_from_noise_to_an_image(build, name):
    _, backbone = build(name)
    scheduler = backbone.scheduler("euler", 1)
    [timestep] = scheduler.timesteps
    latents = torch.ones(1, *backbone.latent_shape())
    found = scheduler.step(latents / 4, timestep, latents).prev_sample
    torch.testing.assert_close(found, 0.75 * latents)


@pytest.mark.parametrize("name", CASES)
def test_step_previews_show_the_clean_image(build, name):
    _, backbone = build(name)
    seen = []
    sampling = Sampling("euler", 2, CASES[name].guidance)
    generate(backbone, PROMPTS[:1], [0], sampling, lambda _, latents: seen.append(latents))
    image, last = backbone.decode(seen[0]), backbone.decode(seen[1])
    assert not np.array_equal(image, last)
    final = generate(backbone, PROMPTS[:1], [0], sampling)
    assert np.array_equal(last, final)


@pytest.mark.parametrize(("name", "deep"), VARIANTS)
def test_predictions_of_a_batch_equal_those_of_single_rows(build, name, deep):
    _, backbone = build(name, deep)
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(3, *backbone.latent_shape(), generator=generator)
    timesteps = torch.tensor([900.0, 500.0, 3.0])
    condition = backbone.condition(PROMPTS)
    together = backbone.denoise(latents, timesteps, condition)
    for row in range(3):
        rows = slice(row, row + 1)
        alone = backbone.denoise(latents[rows], timesteps[rows], condition[rows])
        torch.testing.assert_close(together[rows], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("flow", [
    {}, {"density": "logit_normal"},
    {"density": "logit_normal", "logit_mean": 0.5, "logit_std": 1.5},
    {"density": "uniform", "shift": 3.0}, {"shift": 1.0, "weighting": "cosmap"},
    {"weighting": "image"}, {"weighting": "none"},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("name", CASES)
def test_the_loss_of_a_step_equals_that_of_a_plain_loop(build, name, flow):
    case, (pipeline, backbone) = CASES[name], build(name)
    pixels = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)
    data = TrainingData(
        "rex", Latents(*backbone.encode(pixels[:2])), ((0,), (1,)),
        backbone.condition(PROMPTS[:2]), Latents(*backbone.encode(pixels[2:])),
        backbone.condition(["a dog"]),
    )  # fmt: skip
    recipe = recipe_of("full", resolution=32, batch_size=2, flow=flow)
    batch = draw_batches(data, recipe, backbone.schedule, 5, Share())[0]
    prediction = backbone.denoise(batch.noisy_BCHW, batch.timesteps_B, batch.condition)
    found = losses.prior_preservation_loss(
        losses.row_losses(prediction, batch.target_BCHW), batch.weights_B
    )
    mean, deviation = case.latents(pipeline, torch.from_numpy(pixels))
    table = case.table(pipeline.scheduler.config, flow.get("shift"))
    position, weight = case.position, case.weight
    if flow.get("density"):
        position = positions(flow)
    if flow.get("weighting"):
        weight = WEIGHTS[flow["weighting"]]
    total = 0.0
    for row in range(4):
        random = losses.generator_of(recipe.seed, "rex", 5, row)
        image = 2 if row > 1 else 0
        image += int(torch.randint(1 if row > 1 else 2, (), generator=random))
        torch.randint(1, (), generator=random) if row < 2 else None  # the view
        latents = mean[image] + deviation[image] * torch.randn(mean[0].shape, generator=random)
        noise = torch.randn(latents.shape, generator=random)
        sigma = table[int(position(random) * 1000)]
        noisy = (1 - sigma) * latents + sigma * noise
        prompt = "a dog" if row > 1 else PROMPTS[image]
        with torch.no_grad():
            answer = case.predict(pipeline, noisy[None], sigma, case.encode(pipeline, prompt))
        error = (answer[0] - (noise - latents)).square().mean()
        total += weight(sigma) * float(error) / 2
    assert float(found) == pytest.approx(total, rel=1e-4)


WEIGHTS = {
    "none": lambda sigma: 1.0,
    "image": lambda sigma: sigma**2,
    "cosmap": lambda sigma: 2 / (np.pi * (1 - 2 * sigma + 2 * sigma**2)),
}


def positions(flow):
    """Return a function that draws a position in the table by a recipe's density."""
    if flow["density"] == "uniform":
        return lambda random: torch.rand((), generator=random)

    def position(random):
        normal = float(torch.randn((), generator=random))
        return 1 / (1 + np.exp(-(flow.get("logit_mean", 0) + flow.get("logit_std", 1) * normal)))

    return position


def test_weights_and_densities_equal_those_of_diffusers():
    from diffusers.training_utils import (
        compute_density_for_timestep_sampling,
        compute_loss_weighting_for_sd3,
    )

    sigmas = torch.tensor([0.1, 0.5, 0.9])
    schedule = FlowSchedule.of({})
    found = schedule.weights(1000 * sigmas, recipe_of("full", flow={"weighting": "cosmap"}))
    torch.testing.assert_close(found, compute_loss_weighting_for_sd3("cosmap", sigmas))
    recipe = recipe_of("full", flow={"density": "logit_normal", "logit_mean": 1, "logit_std": 2})
    random = torch.Generator().manual_seed(0)
    drawn = [float(schedule.draw(random, recipe)) for _ in range(4000)]
    theirs = compute_density_for_timestep_sampling(
        "logit_normal", 4000, 1.0, 2.0, generator=torch.Generator().manual_seed(1)
    )
    # Theirs is a position in a table from noise to image.
    assert np.mean(drawn) / 1000 == pytest.approx(1 - float(theirs.mean()), abs=0.02)
    assert np.std(drawn) / 1000 == pytest.approx(float(theirs.std()), abs=0.02)


@pytest.mark.parametrize("method", ["full", {"kind": "lora", "rank": 4}])
@pytest.mark.parametrize("name", CASES)
def test_published_files_predict_as_the_trained_network(build, name, method):
    recipe = recipe_of(method, resolution=32)
    _, other = build(name)
    found = Trained(other.base, recipe)
    wanted, untouched = prediction_of(found.backbone), prediction_of(other)
    read = method_of(recipe.method).read(contents_of(found.files), other.resident.layouts)
    other.resident.put(read)
    torch.testing.assert_close(prediction_of(other), wanted, rtol=1e-4, atol=1e-4)
    assert (wanted - untouched).abs().max() > 1e-3
    other.resident.put(None)
    assert torch.equal(prediction_of(other), untouched)


@pytest.mark.parametrize(("name", "deep"), VARIANTS)
def test_the_family_knows_its_number_of_targets(build, name, deep):
    case, (pipeline, backbone) = CASES[name], build(name, deep)
    family = backbone.base.family
    ends = [end for group in family.default_targets for end in family.targets[group]]
    matched = [
        path for path, layer in pipeline.transformer.named_modules()
        if isinstance(layer, torch.nn.Linear) and any(path.endswith(f".{end}") for end in ends)
    ]  # fmt: skip
    config = dict(pipeline.transformer.config)
    assert len(matched) == count(family, config) == case.num_targets(config)
    assert count(family, config | case.real) == case.real["targets"]


def count(family, config):
    return sum(family.num_targets(config, group) for group in family.default_targets)


@pytest.mark.parametrize("name", CASES)
def test_every_group_of_targets_is_counted_correctly(build, name):
    pipeline, backbone = build(name)
    for group, ends in backbone.base.family.targets.items():
        matched = [
            path for path, layer in pipeline.transformer.named_modules()
            if isinstance(layer, torch.nn.Linear) and any(path.endswith(f".{end}") for end in ends)
        ]  # fmt: skip
        assert backbone.base.family.num_targets(dict(pipeline.transformer.config), group) == (
            len(matched)
        ), group


@pytest.mark.parametrize("name", CASES)
def test_other_samplers_are_rejected_and_defaults_apply(build, name):
    _, backbone = build(name)
    with pytest.raises(BaseError, match="no sampler 'ddim'; choose one of: euler"):
        backbone.scheduler("ddim", 2)
    for section in (Prior(), Previews()):
        assert backbone.base.fill(section).sampler == "euler"


@pytest.mark.parametrize("name", CASES)
def test_unsupported_recipes_are_reported(build, name):
    base = build(name)[1].base
    recipe = recipe_of("full", min_snr_gamma=5, train_text_encoder=True, noise_offset=0.1,
                       flow={"density": "uniform", "logit_std": 2})  # fmt: skip
    recipe = recipe.model_copy(update={"resolution": 36})
    found = " ".join(what for what, _ in base.family.unfit(base.layout, recipe))
    step = 2 * build(name)[0].vae_scale_factor
    assert f"multiple of {step}" in found
    assert "min_snr_gamma" in found
    assert "noise_offset is not for" in found
    assert "are of the density logit_normal alone" in found
    assert ("train_text_encoder" in found) == (not base.family.encoders_to_train)
    assert not [*base.family.unfit(base.layout, recipe_of("full", resolution=48))]


def change(folder, file, **values):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


TRANSFORMER, INDEX = "transformer/config.json", "model_index.json"
SCHEDULER = "scheduler/scheduler_config.json"


@pytest.mark.parametrize(("name", "file", "values", "reason"), [
    ("flux", TRANSFORMER, {"in_channels": 64}, "takes 64 channels, not the 16 of its latents"),
    ("flux", SCHEDULER, {"_class_name": "DDIMScheduler"}, "its scheduler is DDIMScheduler"),
    ("flux", "text_encoder_2/config.json", {"model_type": "umt5"}, "text_encoder_2 is umt5"),
    ("sd3", SCHEDULER, {"use_dynamic_shifting": True}, "use_dynamic_shifting"),
    ("flux2_klein", TRANSFORMER, {"joint_attention_dim": 40}, "width 40, .* have 48"),
    ("qwen_image", TRANSFORMER, {"zero_cond_t": True}, "has set zero_cond_t"),
])  # fmt: skip
def test_bases_that_cannot_be_trained_are_rejected(tmp_path, name, file, values, reason):
    folder = FAMILIES[name].build(tmp_path / "base")
    change(folder, file, **values)
    with pytest.raises(BaseError, match=reason):
        bases.resolve(str(folder))


@pytest.mark.parametrize(("name", "folder", "file", "values", "reason"), [
    ("flux", "base", TRANSFORMER, {"guidance_embeds": False}, "schnell.*distilled to 4 steps"),
    ("flux2_klein", "base", INDEX, {"is_distilled": True}, "'base' in its name"),
    ("z_image", "Z-Image-Turbo", INDEX, {}, "distilled to few steps by its name"),
])  # fmt: skip
def test_distilled_bases_are_known_and_sample_in_few_steps(
    tmp_path, name, folder, file, values, reason
):
    plain = bases.resolve(str(FAMILIES[name].build(tmp_path / "plain")))
    assert plain.distilled is None
    found = FAMILIES[name].build(tmp_path / folder)
    change(found, file, **values)
    base = bases.resolve(str(found))
    assert re.search(reason, base.distilled)
    assert base.fill(Previews()).steps < plain.fill(Previews()).steps
    assert base.fill(Previews()).guidance == 1
    assert base.fill(Previews(steps=9)).steps == 9
    sampling = Sampling("euler", 2, 1.0)
    backbone = bases.load(base, bases.Compute(resolution=32))
    assert generate(backbone, PROMPTS[:1], [0], sampling).shape == (1, 32, 32, 3)


def prediction_of(backbone):
    """Return the present prediction of a base for two fixed rows."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, *backbone.latent_shape((32, 32)), generator=generator)
    condition = backbone.condition([f"a {IDENTIFIER} dog", "a dog"])
    return backbone.denoise(latents, torch.tensor([10.0, 500.0]), condition)
