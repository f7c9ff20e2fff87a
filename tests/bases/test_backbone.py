"""Loading: where models are, in which type their weights are held, and what a condition is then."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kit.families import FAMILIES

from dbray import bases
from dbray.bases import Compute
from dbray.bases.families.stable_diffusion import StableDiffusion
from dbray.bases.generate import Sampling, generate
from dbray.bases.placement import on_device


def in_16_bits(folder, dtype):
    """A copy of a base whose weights are stored in 16 bits."""
    import diffusers

    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, torch_dtype=dtype)
    copied = folder.with_name(f"{folder.name}-{dtype}".replace("torch.", ""))
    pipeline.save_pretrained(copied)
    return bases.resolve(str(copied))


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    return FAMILIES["sdxl"].build(tmp_path_factory.mktemp("sdxl") / "base")


def types_of(backbone):
    return {part: {p.dtype for p in model.parameters()} for part, model in backbone.models.items()}


def test_denoiser_and_text_encoders_stay_in_bfloat16(sdxl):
    base = in_16_bits(sdxl, torch.bfloat16)
    half = bases.load(base, Compute(precision="bf16", half=True))
    assert types_of(half) == {
        "unet": {torch.bfloat16}, "vae": {torch.float32},
        "text_encoder": {torch.bfloat16}, "text_encoder_2": {torch.bfloat16},
    }  # fmt: skip
    whole = bases.load(base, Compute(precision="bf16"))
    assert set().union(*types_of(whole).values()) == {torch.float32}
    found, exact = (one.condition(["a photo of zb dog"]).tensors for one in (half, whole))
    for name, tensor in exact.items():
        assert found[name].dtype == tensor.dtype
        assert (found[name] - tensor).norm() < 0.03 * tensor.norm()


def test_other_types_are_loaded_in_float32(sdxl):
    for base in (bases.resolve(str(sdxl)), in_16_bits(sdxl, torch.float16)):
        half = bases.load(base, Compute(precision="bf16", half=True))
        assert set().union(*types_of(half).values()) == {torch.float32}


def test_models_that_visit_are_on_the_device_while_they_encode(tiny_base, monkeypatch):
    visits = []

    def recorded(models, device):
        visits.append([type(model).__name__ for model in models])
        return on_device(models, device)

    monkeypatch.setattr("dbray.bases.backbone.on_device", recorded)
    base = bases.resolve(str(tiny_base))
    staying, visiting = (bases.load(base, Compute(visits=one)) for one in (False, True))
    pixels = np.zeros((1, 32, 32, 3), dtype=np.uint8)
    for backbone, encoders in (
        (staying, [[], []]),
        (visiting, [["AutoencoderKL"], ["CLIPTextModel"]]),
    ):
        visits.clear()
        mean, _ = backbone.encode(pixels)
        text = backbone.condition(["a dog"]).tensors["text"]
        assert visits == encoders
        assert torch.equal(mean, staying.encode(pixels)[0])
        assert torch.equal(text, staying.condition(["a dog"]).tensors["text"])


@pytest.mark.parametrize("negative", ["", "a cat"])
@pytest.mark.parametrize("num", [1, 2, 5])
def test_a_negative_prompt_is_embedded_once(tiny_base, monkeypatch, num, negative):
    backbone = bases.load(bases.resolve(str(tiny_base)))
    embed, texts = StableDiffusion.embed, []

    def counted(family, models, tokens):
        texts.append(len(tokens["token_ids"]))
        return embed(family, models, tokens)

    monkeypatch.setattr(StableDiffusion, "embed", counted)
    sampling = Sampling(steps=2, negative_prompt=negative)
    images = generate(backbone, ["a photo of zb dog"] * num, [7] * num, sampling)
    assert texts == [num + 1]
    alone = generate(backbone, ["a photo of zb dog"], [7], sampling)
    assert np.abs(images.astype(int) - alone).max() <= 1
