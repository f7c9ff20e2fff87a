"""The published format is diffusers': adapters written by dbray have the same effect there."""

from __future__ import annotations

import json

import pytest
import torch
from kit.adapters import loaded_outputs, merged_outputs, pipeline, random_adapter
from safetensors.torch import load_file, save_file

from dbray.errors import RegistryError
from dbray.method.factors import (
    METADATA_KEY,
    Factors,
    canonical,
    from_published,
    to_published,
    to_state,
)


@pytest.mark.parametrize("is_dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_diffusers_loads_published_adapters(tmp_path, family: str, is_dora: bool) -> None:
    adapter = random_adapter(family, is_dora=is_dora)
    file = tmp_path / "adapter.safetensors"
    tensors, metadata = to_published(adapter)
    save_file(tensors, file, metadata)
    pipe = pipeline(family)
    pipe.load_lora_weights(tmp_path, weight_name=file.name)
    torch.testing.assert_close(
        loaded_outputs(pipe), merged_outputs(family, adapter), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_a_published_adapter_is_read_back(family: str) -> None:
    adapter = random_adapter(family, is_dora=True)
    again = from_published(*to_published(adapter))
    assert again.keys() == adapter.keys()
    for layer, factors in adapter.items():
        read = again[layer]
        assert read.alpha == factors.alpha
        assert torch.equal(read.down, factors.down)
        assert torch.equal(read.up, factors.up)
        assert read.magnitude is not None
        assert factors.magnitude is not None
        assert torch.equal(read.magnitude, factors.magnitude)


def test_an_adapter_of_one_alpha_stores_it_once() -> None:
    layer = Factors(torch.zeros(2, 4), torch.zeros(4, 2), alpha=3)
    odd = Factors(torch.zeros(1, 4), torch.zeros(4, 1), alpha=5)
    _, metadata = to_published({"unet.a.to_q": layer, "unet.b.to_q": layer, "unet.c.to_q": odd})
    config = json.loads(metadata[METADATA_KEY])
    assert (config["unet.r"], config["unet.lora_alpha"]) == (2, 3)
    assert config["unet.rank_pattern"] == {"^c.to_q": 1}
    assert config["unet.alpha_pattern"] == {"^c.to_q": 5}


@pytest.mark.parametrize("metadata", [{}, {METADATA_KEY: "{}"}, {METADATA_KEY: "{"}])
def test_a_file_without_alphas_is_rejected(metadata: dict[str, str]) -> None:
    tensors, _ = to_published(random_adapter("sd"))
    with pytest.raises(RegistryError, match="not a published adapter"):
        from_published(tensors, metadata)


def test_a_layer_missing_in_the_base_is_rejected() -> None:
    adapter = random_adapter("sd")
    with pytest.raises(RegistryError, match=r"the base has no layer 'text_encoder\."):
        to_state(adapter, ["unet.mid_block.attentions.0.proj_in"])


def test_layers_of_text_encoders_have_one_canonical_name() -> None:
    assert canonical("text_encoder_2.text_model.encoder.layers.0.mlp.fc1") == canonical(
        "text_encoder_2.encoder.layers.0.mlp.fc1"
    )


def test_files_keep_the_factors_in_float32(tmp_path) -> None:
    tensors, metadata = to_published(random_adapter("sd"))
    save_file(tensors, tmp_path / "a.safetensors", metadata)
    assert {t.dtype for t in load_file(tmp_path / "a.safetensors").values()} == {torch.float32}
