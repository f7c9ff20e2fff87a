"""Kohya's keys: diffusers loads the file with the effect of dbray's own merge."""

from __future__ import annotations

import pytest
import torch
from kit.adapters import loaded_outputs, merged_outputs, pipeline, random_adapter, shapes
from kit.transformers import deltas, random_factors
from safetensors.torch import save_file

from dbray.errors import RegistryError
from dbray.export.kohya import to_kohya
from dbray.export.original_names import unet_names
from dbray.export.reading import read_adapter

ENCODERS = {"sd": 1, "sdxl": 2}


@pytest.mark.parametrize("family", ENCODERS)
def test_diffusers_loads_the_file(tmp_path, family: str) -> None:
    # Its reader supports one alpha for all attention layers, as in dbray's own adapters.
    adapter = random_adapter(family, is_uniform=True)
    save_file(to_kohya(adapter, ENCODERS[family]), tmp_path / "a.safetensors")
    pipe = pipeline(family)
    pipe.load_lora_weights(tmp_path, weight_name="a.safetensors")
    expected = merged_outputs(family, adapter)
    torch.testing.assert_close(loaded_outputs(pipe), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("is_dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("family", ENCODERS)
def test_a_published_adapter_is_read_back(family: str, is_dora: bool) -> None:
    adapter = random_adapter(family, is_dora=is_dora)
    again = read_adapter(to_kohya(adapter, ENCODERS[family]), {}, shapes(family))
    assert again.keys() == adapter.keys()
    for layer, factors in adapter.items():
        read = again[layer]
        assert read.alpha == factors.alpha
        assert torch.equal(read.down, factors.down)
        assert torch.equal(read.up, factors.up)
        assert (read.magnitude is None) == (not is_dora)
        assert not is_dora or torch.equal(read.magnitude, factors.magnitude)


def test_layer_names_are_those_of_kohya() -> None:
    names = {key.partition(".")[0] for key in to_kohya(random_adapter("sdxl"), 2)}
    assert "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0" in names
    assert "lora_te1_text_model_encoder_layers_0_self_attn_q_proj" in names
    assert "lora_te2_text_model_encoder_layers_1_mlp_fc2" in names
    single = {key.partition(".")[0] for key in to_kohya(random_adapter("sd"), 1)}
    assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj" in single


def test_names_of_the_original_unet_are_read_as_diffusers_reads_them(tmp_path) -> None:
    """Kohya trains SDXL on the original UNet; diffusers has its own table of that UNet's names."""
    adapter = random_adapter("sdxl", is_uniform=True)
    written = to_kohya(adapter, 2)
    paths = [layer.removeprefix("unet.") for layer in shapes("sdxl") if layer.startswith("unet.")]
    flat = {
        path.replace(".", "_"): name.replace(".", "_") for path, name in unet_names(paths).items()
    }
    renamed = {}
    for key, tensor in written.items():
        name, dot, ending = key.partition(".")
        path = name.removeprefix("lora_unet_")
        renamed[f"lora_unet_{flat.get(path, path)}{dot}{ending}" if path != name else key] = tensor
    assert any("input_blocks_4_1_transformer" in key for key in renamed)
    again = deltas(read_adapter(renamed, {}, shapes("sdxl")))
    for layer, expected in deltas(adapter).items():
        assert torch.equal(again[layer], expected), layer
    save_file(renamed, tmp_path / "a.safetensors")
    pipe = pipeline("sdxl")
    pipe.load_lora_weights(tmp_path, weight_name="a.safetensors")
    expected = merged_outputs("sdxl", adapter)
    torch.testing.assert_close(loaded_outputs(pipe), expected, rtol=0, atol=1e-5)


def test_transformers_are_rejected() -> None:
    with pytest.raises(RegistryError, match="no name for the part 'transformer'"):
        to_kohya(random_factors("FluxTransformer2DModel"), 2)
