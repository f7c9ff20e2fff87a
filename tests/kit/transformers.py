"""Tiny transformers of each family, in memory, and random factors for their layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dbray.method.factors import Adapters, Factors


def _flux() -> nn.Module:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )  # fmt: skip


def _flux2() -> nn.Module:
    from diffusers import Flux2Transformer2DModel

    return Flux2Transformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=48, axes_dims_rope=(4, 4, 4, 4),
        timestep_guidance_channels=256, guidance_embeds=False,
    )  # fmt: skip


def _sd3() -> nn.Module:
    from kit.denoisers import tiny_transformer

    return tiny_transformer()


def _qwen() -> nn.Module:
    from diffusers import QwenImageTransformer2DModel

    return QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16,
        num_attention_heads=3, joint_attention_dim=16, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip


def _z_image() -> nn.Module:
    from diffusers import ZImageTransformer2DModel

    return ZImageTransformer2DModel(
        all_patch_size=(2,), in_channels=16, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2,
        n_kv_heads=2, cap_feat_dim=16, axes_dims=[8, 4, 4], axes_lens=[256, 32, 32],
    )  # fmt: skip


TRANSFORMERS = {
    "FluxTransformer2DModel": _flux,
    "Flux2Transformer2DModel": _flux2,
    "SD3Transformer2DModel": _sd3,
    "QwenImageTransformer2DModel": _qwen,
    "ZImageTransformer2DModel": _z_image,
}
_BLOCKS = ("blocks", "layers", "refiner")


def layer_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Return the shape of the weight of each linear layer of a family's blocks."""
    modules = TRANSFORMERS[name]().named_modules()
    linear = {n: m for n, m in modules if isinstance(m, nn.Linear)}
    return {f"transformer.{n}": tuple(m.weight.shape) for n, m in linear.items()
            if any(word in n.partition(".")[0] for word in _BLOCKS)}  # fmt: skip


def random_factors(name: str) -> dict[str, Factors]:
    """Make factors of rank 3 and alpha 4.5 for every layer of the blocks."""
    draw = torch.Generator().manual_seed(0)
    return {
        layer: Factors(
            torch.randn(3, inputs, generator=draw), torch.randn(outputs, 3, generator=draw), 4.5
        )
        for layer, (outputs, inputs) in layer_shapes(name).items()
    }


def delta(factors: Factors) -> Tensor:
    """Return the change of a layer's weight by its factors, in two dimensions."""
    return factors.alpha / factors.rank * factors.up.flatten(1) @ factors.down.flatten(1)


def deltas(adapter: Adapters) -> dict[str, Tensor]:
    return {layer: delta(factors) for layer, factors in adapter.items()}


def diffusers_deltas(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the change of each layer by diffusers' own loader of a family."""
    import diffusers.loaders as loaders

    mixin: Any = {
        "FluxTransformer2DModel": loaders.FluxLoraLoaderMixin,
        "Flux2Transformer2DModel": loaders.Flux2LoraLoaderMixin,
        "QwenImageTransformer2DModel": loaders.QwenImageLoraLoaderMixin,
        "ZImageTransformer2DModel": loaders.ZImageLoraLoaderMixin,
    }[name]
    alphas: dict[str, Any] = {}
    if mixin is loaders.FluxLoraLoaderMixin:
        state, alphas = mixin.lora_state_dict(dict(tensors), return_alphas=True)
    else:
        state = mixin.lora_state_dict(dict(tensors))
    layers = [key.removesuffix(".lora_A.weight") for key in state if "lora_A" in key]
    return {
        layer: delta(
            Factors(
                down := state[f"{layer}.lora_A.weight"],
                state[f"{layer}.lora_B.weight"],
                float((alphas or {}).get(f"{layer}.alpha", len(down))),
            )
        )
        for layer in layers
    }
