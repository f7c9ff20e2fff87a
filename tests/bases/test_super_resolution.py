"""Super-resolution networks compared with diffusers' pipelines: condition, images, training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from kit.families.super_resolution import LOW_SIDE, SUPER_RESOLUTION, build_first
from kit.training import SIDE, Trained, check_published, contents_of, recipe_of
from PIL import Image
from safetensors.torch import load

from dbray import bases
from dbray.bases import Backbone, Base, Compute
from dbray.bases.condition import Condition
from dbray.bases.defaults import fill_super_resolution
from dbray.bases.generate import Sampling, enlarge, generate, scale_of
from dbray.bases.low_images import LowImages
from dbray.errors import BaseError
from dbray.spec.recipe import Recipe
from dbray.spec.super_resolution import SuperResolution
from dbray.training.batches import Share, draw_batches
from dbray.training.data import shrunk

PROMPT = "a photo of zb dog"
METHODS = ["full", {"kind": "lora", "rank": 4}]
CASES = [(name, sampler) for name, samplers in
         (("deepfloyd_if_ii", ("ddpm", "dpm++", "dpm++_sde")), ("x4_upscaler", ("ddpm", "ddim")))
         for sampler in samplers]  # fmt: skip


@dataclass(frozen=True)
class Tiny:
    """A network in dbray, and as diffusers' pipeline."""

    name: str
    base: Base
    backbone: Backbone
    pipeline: Any

    def draw(self, low: np.ndarray, prompt: str = PROMPT, **options: Any) -> np.ndarray:
        """What the pipeline draws in two steps, as numbers up to 255."""
        return 255 * self.pipeline(
            prompt=prompt, image=Image.fromarray(low), num_inference_steps=2, output_type="np",
            generator=torch.Generator().manual_seed(0), **SUPER_RESOLUTION[self.name].options,
            **options,
        ).images[0]  # fmt: skip


def inputs_of(unet: torch.nn.Module, call: Any) -> tuple[torch.Tensor, ...]:
    """What a UNet reads at its first step while `call` runs."""
    seen = []

    def look(_: Any, given: Any, named: Any) -> None:
        sample, time, *text = given
        text = text[0] if text else named["encoder_hidden_states"]
        seen.append((sample, torch.as_tensor(time), text, named["class_labels"]))

    hook = unet.register_forward_pre_hook(look, with_kwargs=True)
    try:
        call()
    finally:
        hook.remove()
    return seen[0]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A first stage whose images the networks enlarge to 32 pixels."""
    return bases.resolve(str(build_first(tmp_path_factory.mktemp("first") / "base")))


@pytest.fixture(scope="module")
def tiny(first, tmp_path_factory):
    made: dict[str, Tiny] = {}

    def tiny_of(name: str) -> Tiny:
        if name not in made:
            builder = SUPER_RESOLUTION[name]
            folder = builder.build(tmp_path_factory.mktemp(name) / "base")
            base = bases.with_stage(first, SuperResolution(base=str(folder))).super_resolution
            made[name] = Tiny(name, base, bases.load(base), builder.load(folder))
        return made[name]

    return tiny_of


def low_image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (LOW_SIDE, LOW_SIDE, 3), dtype=np.uint8)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("level", [0, 250])
@pytest.mark.parametrize(("name", "sampler"), CASES)
def test_images_are_those_of_the_pipeline(tiny, name, sampler, level, guidance):
    here, low = tiny(name), low_image()
    sampling = Sampling(sampler, 2, guidance, noise_level=level)
    [image] = enlarge(here.backbone, [PROMPT], low[None], [0], sampling)
    assert image.shape == (SIDE, SIDE, 3)
    here.pipeline.scheduler = here.backbone.scheduler(sampler, 2)
    assert np.abs(image - here.draw(low, guidance_scale=guidance, noise_level=level)).max() <= 1


@pytest.mark.parametrize("name", SUPER_RESOLUTION)
def test_images_depend_on_the_low_image_its_level_and_the_text(tiny, name):
    here = tiny(name)

    def draw(prompt: str = PROMPT, level: int = 0, seed: int = 0) -> np.ndarray:
        sampling = Sampling("ddpm", 2, 4.0, noise_level=level)
        return enlarge(here.backbone, [prompt], low_image(seed)[None], [0], sampling).astype(int)

    for other in (draw("a cat"), draw(level=300), draw(seed=1)):
        assert np.abs(other - draw()).max() > 1


@pytest.mark.parametrize("name", SUPER_RESOLUTION)
def test_images_of_a_batch_are_those_drawn_alone(tiny, name):
    here, lows = tiny(name), np.stack([low_image(seed) for seed in range(3)])
    sampling = Sampling("ddpm", 2, 4.0, noise_level=100)
    together = enlarge(here.backbone, [PROMPT] * 3, lows, [0, 1, 2], sampling).astype(int)
    for row in range(3):
        [alone] = enlarge(here.backbone, [PROMPT], lows[row : row + 1], [row], sampling)
        assert np.abs(together[row] - alone).max() <= 1


@pytest.mark.parametrize("level", [0, 250])
@pytest.mark.parametrize("name", SUPER_RESOLUTION)
def test_training_gives_the_network_what_the_pipeline_gives_it(tiny, name, level):
    """For the same noise: noisy latents, timestep, text, low image and level."""
    here, low = tiny(name), low_image()
    backbone, draw = here.backbone, torch.Generator().manual_seed(1)
    noisy = torch.randn(backbone.latent_shape(), generator=draw)
    lows = LowImages(low[None], backbone.low_images, backbone.noising(level))
    row = lows.add(backbone.condition([PROMPT])[0], 0, torch.Generator().manual_seed(2))
    of_low = torch.randn(row.tensors["low"].shape, generator=torch.Generator().manual_seed(2))
    drawn = iter([of_low, noisy] if name == "x4_upscaler" else [noisy, of_low])
    here.pipeline.scheduler = backbone.scheduler("ddpm", 2)

    with pytest.MonkeyPatch.context() as patch:
        module = type(here.pipeline).__module__
        patch.setattr(f"{module}.randn_tensor", lambda *_, **__: next(drawn)[None])
        wanted = inputs_of(here.pipeline.unet, lambda: here.draw(
            low, guidance_scale=1.0, noise_level=level
        ))  # fmt: skip
    network, condition = backbone.network(("unet",)), Condition.stack([row])
    found = inputs_of(backbone.models["unet"], lambda: network(
        noisy[None], wanted[1].view(1), condition.tensors
    ))  # fmt: skip
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine.flatten(), theirs.flatten(), rtol=0, atol=3e-7)


@pytest.mark.parametrize("name", SUPER_RESOLUTION)
def test_a_row_of_a_step_has_the_low_image_of_its_own_image(tiny, name):
    here, recipe = tiny(name), recipe_of("full", steps=1, batch_size=4)
    data = Trained(here.base, recipe, noise_level=0).data
    [batch] = draw_batches(data, recipe, here.backbone.schedule, 0, Share())
    images = [data.views] * 4 + [data.prior] * 4
    for row, source in enumerate(images):
        low, level = (batch.condition.tensors[key][row] for key in ("low", "level"))
        clean = here.backbone.low_images(source.low.images_NHWC)
        nearest = int((clean - low).flatten(1).norm(dim=1).argmin())
        assert float((clean[nearest] - low).std()) < 0.02
        assert level == 0
        if name == "deepfloyd_if_ii":  # its latents are the pixels
            alpha = here.backbone.schedule.alphas_cumprod_T[batch.timesteps_B[row]]
            noise = (1 - alpha).sqrt() * batch.target_BCHW[row]
            pixels = (batch.noisy_BCHW[row] - noise) / alpha.sqrt()
            assert float((source.mean_VCHW[nearest] - pixels).abs().max()) < 1e-2


def test_a_third_network_enlarges_as_its_pipeline_does(first, tiny):
    second, third = tiny("deepfloyd_if_ii"), tiny("x4_upscaler")
    then = {"base": str(third.base.folder), "steps": 2}
    section = SuperResolution(base=str(second.base.folder), steps=2, then=then)
    base = bases.with_stage(first, section)
    section = fill_super_resolution(base, section)
    assert section.then.noise_level == 20  # of its pipeline, as for a network that nobody trains
    backbone = bases.load(base, Compute.of("cpu", Recipe(), section))
    two = Sampling("ddpm", 2).through(section.model_copy(update={"then": None}))
    three = Sampling("ddpm", 2).through(section)
    [middle] = generate(backbone, [PROMPT], [0], two)
    [large] = generate(backbone, [PROMPT], [0], three)
    assert (middle.shape, large.shape) == ((SIDE, SIDE, 3), (4 * SIDE, 4 * SIDE, 3))
    assert scale_of(base, three) == base.enlargement == large.shape[0] // LOW_SIDE
    third.pipeline.scheduler = backbone.super_resolution.super_resolution.scheduler("ddim", 2)
    wanted = third.draw(middle, guidance_scale=9.0, noise_level=20)
    assert np.abs(large - wanted).max() <= 1
    assert all("super_resolution_super" not in part for part in backbone.resident.layouts)


def test_low_images_average_areas():
    pixels = np.arange(2 * 4 * 6 * 3, dtype=np.uint8).reshape(2, 4, 6, 3)
    low = shrunk(pixels, 2)
    assert low.shape == (2, 2, 3, 3)
    assert low[1, 0, 2, 1] == round(float(pixels[1, :2, 4:, 1].mean()))


@pytest.mark.parametrize("method", METHODS, ids=["full", "lora"])
@pytest.mark.parametrize("name", SUPER_RESOLUTION)
def test_a_published_model_predicts_as_it_was_trained(tiny, name, method):
    check_published(tiny(name).base, Trained(tiny(name).base, recipe_of(method), noise_level=0))


@pytest.mark.parametrize("method", METHODS, ids=["full", "lora"])
@pytest.mark.parametrize("name", SUPER_RESOLUTION)
def test_training_continues_from_a_checkpoint_bit_for_bit(tiny, name, method):
    trained = Trained(tiny(name).base, recipe_of(method), checkpoint=2, noise_level=20)
    assert trained.resumed == trained.files


@pytest.mark.parametrize("name", SUPER_RESOLUTION)
def test_the_level_changes_what_is_trained(tiny, name):
    files = [Trained(tiny(name).base, recipe_of("full"), noise_level=level).files
             for level in (0, 0, 250)]  # fmt: skip
    assert files[0] == files[1] != files[2]
    assert contents_of(files[0]).keys() == {"unet.safetensors"}


def test_the_rows_of_the_variance_stay_as_they_are(tiny):
    here = tiny("deepfloyd_if_ii")
    trained = Trained(here.base, recipe_of("full", weight_decay=0.5), noise_level=0)
    after = load(trained.files["unet.safetensors"])["conv_out.weight"]
    before = here.backbone.models["unet"].state_dict()["conv_out.weight"]
    assert torch.equal(after[3:], before[3:])
    assert not torch.equal(after[:3], before[:3])


@pytest.mark.parametrize("name", SUPER_RESOLUTION)
def test_it_is_no_base_of_its_own(tiny, name):
    with pytest.raises(BaseError, match="draws no image from a text alone"):
        bases.resolve(str(tiny(name).base.folder))


def test_stages_that_do_not_fit_are_refused(first, tiny, tmp_path):
    with pytest.raises(BaseError, match="is not a super-resolution network"):
        bases.with_stage(first, SuperResolution(base=str(first.folder)))
    large = bases.resolve(str(build_first(tmp_path / "large", side=24)))
    folder = str(tiny("deepfloyd_if_ii").base.folder)
    with pytest.raises(BaseError, match="draws 32 px, which is no multiple of the 24 px"):
        bases.with_stage(large, SuperResolution(base=folder))
