"""ComfyUI's keys for transformers, read back by dbray and by diffusers."""

from __future__ import annotations

import pytest
import torch
from kit.transformers import (
    TRANSFORMERS,
    delta,
    deltas,
    diffusers_deltas,
    layer_shapes,
    random_factors,
)

from dbray.errors import RegistryError
from dbray.export.comfyui import PREFIXES, to_comfyui
from dbray.export.reading import read_adapter

WITHOUT_ALPHA = ("Flux2Transformer2DModel", "SD3Transformer2DModel")


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_published_adapter_is_read_back(name: str) -> None:
    adapter = random_factors(name)
    again = read_adapter(to_comfyui(adapter, name), {}, layer_shapes(name))
    assert again.keys() == adapter.keys()
    for layer, factors in adapter.items():
        assert torch.equal(again[layer].down, factors.down)
        torch.testing.assert_close(delta(again[layer]), delta(factors))
        if name not in WITHOUT_ALPHA:
            assert again[layer].alpha == factors.alpha
            assert torch.equal(again[layer].up, factors.up)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_every_layer_has_its_factors_and_the_real_alpha(name: str) -> None:
    adapter = random_factors(name)
    tensors = to_comfyui(adapter, name)
    for layer in layer_shapes(name):
        path = PREFIXES[name] + layer.removeprefix("transformer.")
        # ComfyUI multiplies by alpha / rank where there is an alpha, else by 1.
        scale = tensors.pop(f"{path}.alpha").item() / 3 if name not in WITHOUT_ALPHA else 1
        down, up = (tensors.pop(f"{path}.lora_{letter}.weight") for letter in "AB")
        torch.testing.assert_close(scale * up @ down, delta(adapter[layer]))
    assert not tensors


@pytest.mark.parametrize(
    "name",
    [name for name in TRANSFORMERS if name != "SD3Transformer2DModel"],
)
def test_diffusers_reads_the_same_effect(name: str) -> None:
    adapter = random_factors(name)
    found = diffusers_deltas(name, to_comfyui(adapter, name))
    for layer, expected in deltas(adapter).items():
        torch.testing.assert_close(found[layer], expected, rtol=1e-5, atol=1e-5, msg=layer)


def test_an_unknown_denoiser_is_rejected() -> None:
    with pytest.raises(RegistryError, match="no ComfyUI keys are known for HunyuanDiT2DModel"):
        to_comfyui({}, "HunyuanDiT2DModel")
