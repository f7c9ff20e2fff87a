"""Files of other tools: a file with a key that names no layer is rejected."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from kit.adapters import random_adapter, shapes
from kit.transformers import delta, diffusers_deltas, layer_shapes, random_factors
from torch import Tensor

from dbray.errors import RegistryError
from dbray.export.kohya import to_kohya
from dbray.export.reading import read_adapter
from dbray.method.factors import to_published


def pair(name: str, inputs: int, outputs: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {
        f"{name}.lora_A.weight": torch.randn(3, inputs, generator=draw),
        f"{name}.lora_B.weight": torch.randn(outputs, 3, generator=draw),
    }


@pytest.mark.parametrize("is_dora", [False, True], ids=["lora", "dora"])
def test_the_published_format_is_read(is_dora: bool) -> None:
    adapter = random_adapter("sdxl", is_dora=is_dora)
    again = read_adapter(*to_published(adapter), shapes("sdxl"))
    assert again.keys() == adapter.keys()
    for layer, factors in adapter.items():
        assert again[layer].alpha == factors.alpha
        assert torch.equal(delta(again[layer]), delta(factors))
        assert (again[layer].magnitude is None) == (not is_dora)


def test_a_missing_alpha_is_the_rank() -> None:
    written, _ = to_published(random_adapter("sd"))
    read = read_adapter(written, {}, shapes("sd"))
    assert {factors.alpha == factors.rank for factors in read.values()} == {True}


def test_fused_layers_of_flux_2_are_split_as_diffusers_splits_them() -> None:
    name = "Flux2Transformer2DModel"
    tensors = pair("diffusion_model.double_blocks.0.img_attn.qkv", 32, 96)
    tensors |= pair("diffusion_model.double_blocks.0.txt_attn.qkv", 32, 96)
    tensors |= pair("diffusion_model.double_blocks.0.img_attn.proj", 32, 32)
    linear1 = layer_shapes(name)["transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj"]
    tensors |= pair("diffusion_model.single_blocks.0.linear1", linear1[1], linear1[0])
    read = read_adapter(tensors, {}, layer_shapes(name))
    expected = diffusers_deltas(name, tensors)
    assert len(expected) == 8
    assert read.keys() == expected.keys()
    for layer, factors in read.items():
        torch.testing.assert_close(delta(factors), expected[layer])


def test_fused_layers_of_flux_1_are_split_by_the_shapes_of_the_base() -> None:
    shapes = layer_shapes("FluxTransformer2DModel")
    block = "transformer.single_transformer_blocks.0"
    layers = [f"{block}.attn.to_q", f"{block}.attn.to_k", f"{block}.attn.to_v", f"{block}.proj_mlp"]
    outputs = [shapes[layer][0] for layer in layers]
    assert len(set(outputs)) == 2
    tensors = pair("diffusion_model.single_blocks.0.linear1", 32, sum(outputs))
    read = read_adapter(tensors, {}, shapes)
    whole = tensors["diffusion_model.single_blocks.0.linear1.lora_B.weight"]
    assert torch.equal(torch.cat([read[layer].up for layer in layers]), whole)
    assert list(read) == layers


def test_kohyas_names_of_the_original_flux_are_read() -> None:
    tensors = {
        "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.ones(2, 32),
        "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": torch.arange(96.0).repeat(2, 1).T,
        "lora_unet_double_blocks_0_img_attn_qkv.alpha": torch.tensor(1.0),
    }
    read = read_adapter(tensors, {}, layer_shapes("FluxTransformer2DModel"))
    ups = {layer.rpartition(".")[2]: factors.up[0, 0].item() for layer, factors in read.items()}
    assert ups == {"to_q": 0, "to_k": 32, "to_v": 64}
    assert {factors.alpha for factors in read.values()} == {1.0}


@pytest.mark.parametrize("prefix", ["", "diffusion_model.", "transformer.", "base_model.model."])
def test_the_prefixes_of_other_trainers_are_read(prefix: str) -> None:
    tensors = pair(f"{prefix}layers.0.attention.to_q", 32, 32)
    read = read_adapter(tensors, {}, layer_shapes("ZImageTransformer2DModel"))
    assert list(read) == ["transformer.layers.0.attention.to_q"]


def test_pointwise_convolutions_are_read_in_two_and_in_four_dimensions() -> None:
    tensors = pair("unet.down_blocks.1.attentions.0.proj_in", 32, 32)
    base = {"unet.down_blocks.1.attentions.0.proj_in": (32, 32, 1, 1)}
    (factors,) = read_adapter(tensors, {}, base).values()
    assert factors.down.shape == (3, 32, 1, 1)
    assert factors.up.shape == (32, 3, 1, 1)
    (flat,) = read_adapter(
        {key: tensor[..., None, None] for key, tensor in tensors.items()}, {},
        {"unet.down_blocks.1.attentions.0.proj_in": (32, 32)},
    ).values()  # fmt: skip
    assert flat.down.shape == (3, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.clear(), "all keys in the file name no layer"),
        (lambda t: t.update(odd=torch.zeros(1)), r"1 of \d+ names .* 'odd'"),
        (lambda t: t.update(pair("lora_unet_nowhere", 4, 4)), r"1 of \d+ names .* 'lora_unet_nowh"),
        (lambda t: t.pop("lora_unet_conv_in.lora_up.weight"), "'lora_unet_conv_in' lacks one"),
        (lambda t: t.update({"lora_unet_conv_in.lora_up.weight": torch.zeros(17, 4, 1, 1)}),
         "has 17 outputs, the base's layer 16"),
        (lambda t: t.update({"lora_unet_conv_in.lora_down.weight": torch.zeros(4, 5, 3, 3)}),
         r"'lora_unet_conv_in' has the shapes \(4, 5, 3, 3\)"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_match_the_base_are_rejected(
    change: Callable[[dict], object], message: str
) -> None:
    tensors = to_kohya(random_adapter("sd"), 1)
    change(tensors)
    with pytest.raises(RegistryError, match=message):
        read_adapter(tensors, {}, shapes("sd"))


def test_a_file_for_another_base_is_rejected() -> None:
    flux = {
        f"{layer}.lora_A.weight": f.down
        for layer, f in random_factors("FluxTransformer2DModel").items()
    }
    with pytest.raises(RegistryError, match="it was made for another base, or is not a LoRA"):
        read_adapter(flux, {}, shapes("sd"))
