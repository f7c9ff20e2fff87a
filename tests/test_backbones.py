"""Bases: which are accepted, and what a loaded one samples and saves."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from dbray import backbones
from dbray.errors import BaseError
from dbray.spec import Recipe


@pytest.fixture
def copied(tiny_base, tmp_path):
    """A copy of the tiny base whose configurations a test may change."""
    return shutil.copytree(tiny_base, tmp_path / "base")


def change(folder, part, **values):
    file = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("part", "values", "reason"),
    [
        ("unet", {"addition_embed_type": "text_time"}, "text_time"),  # Stable Diffusion XL
        ("unet", {"in_channels": 9}, "9 channels, its latents have 4"),  # inpainting
        ("unet", {"_class_name": "Kandinsky3UNet"}, "Kandinsky3UNet"),
        ("vae", {"_class_name": "AutoencoderTiny"}, "AutoencoderTiny"),
        ("text_encoder", {"model_type": "t5"}, "t5"),
    ],
)
def test_other_families_are_refused_before_anything_is_loaded(copied, part, values, reason):
    change(copied, part, **values)
    with pytest.raises(BaseError, match=reason):
        backbones.resolve(str(copied))


def test_a_missing_configuration_is_named(copied):
    (copied / "vae" / "config.json").unlink()
    with pytest.raises(BaseError, match="vae has no readable config"):
        backbones.resolve(str(copied))


@pytest.mark.parametrize("revision", [None, "main", "v1.5", "a" * 39])
def test_a_hub_id_needs_a_commit(revision):
    with pytest.raises(BaseError, match="40 hex digits"):
        backbones.resolve("owner/name", revision)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_latents_are_not_clipped_where_the_base_says_nothing_of_it(copied, sampler):
    file = copied / "scheduler" / "scheduler_config.json"
    schedule = {key: value for key, value in json.loads(file.read_text()).items()
                if key != "clip_sample"}  # fmt: skip
    file.write_text(json.dumps(schedule | {"_class_name": "EulerDiscreteScheduler"}))
    scheduler = backbones.load(backbones.resolve(str(copied))).scheduler(sampler)
    scheduler.set_timesteps(10)
    latents = torch.full((1, 4, 2, 2), 3.0)
    found = scheduler.step(torch.zeros_like(latents), scheduler.timesteps[-1], latents)
    assert found.pred_original_sample.min() > 2.9


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.float16), ("fp32", torch.float32)])
def test_a_saved_model_keeps_the_precision_of_its_recipe(tiny_base, tmp_path, precision, dtype):
    base = backbones.resolve(str(tiny_base))
    backbone = backbones.load(base, Recipe(publish_precision=precision))
    changed = {name.removeprefix("unet."): value * 1.1
               for name, value in backbone.trained.state_dict().items()}  # fmt: skip
    backbone.set_weights({"unet": changed})
    backbone.save(tmp_path / "saved")
    [file] = (tmp_path / "saved" / "unet").glob("*.safetensors")
    saved = load_file(file)
    assert {value.dtype for value in saved.values()} == {dtype}
    for name, value in changed.items():
        assert torch.equal(saved[name], value.to(dtype))
