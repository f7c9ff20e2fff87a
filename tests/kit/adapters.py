"""Random adapters, tiny pipelines of diffusers, and their outputs with an adapter."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from dbray.method.adapter import inject
from dbray.method.factors import Adapters, Factors, collect, to_state
from dbray.method.low_rank import LowRank
from kit.denoisers import ATTENTION, tiny_unet

UNET_TARGETS = (*ATTENTION, "conv_in", "conv1", "conv2", "conv_shortcut", "conv_out",
                "time_emb_proj", "proj_in", "proj_out", "downsamplers.0.conv",
                "upsamplers.0.conv")  # fmt: skip
ENCODER_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


def pipeline(family: str) -> Any:
    """Make a tiny pipeline without tokenizers, always with the same weights."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

    scheduler = DDIMScheduler(steps_offset=1, clip_sample=False)
    shared: dict[str, Any] = {"vae": _vae(), "scheduler": scheduler, "tokenizer": None}
    if family == "sd":
        return StableDiffusionPipeline(
            **shared, unet=tiny_unet(), text_encoder=_encoder(16), safety_checker=None,
            feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
    return StableDiffusionXLPipeline(
        **shared, tokenizer_2=None, unet=_sdxl_unet(), text_encoder=_encoder(16),
        text_encoder_2=_encoder(32, has_projection=True),
    )  # fmt: skip


def parts(family: str, pipe: Any = None) -> nn.ModuleDict:
    """Return the parts that adapters change, in one module."""
    pipe = pipe or pipeline(family)
    names = ["unet", "text_encoder"] + ["text_encoder_2"] * (family == "sdxl")
    return nn.ModuleDict({name: getattr(pipe, name) for name in names})


@cache
def shapes(family: str) -> dict[str, tuple[int, ...]]:
    """Return the shape of the weight of each layer of a tiny pipeline."""
    modules = parts(family).named_modules()
    return {n: tuple(m.weight.shape) for n, m in modules if isinstance(m, nn.Linear | nn.Conv2d)}


@cache
def random_adapter(
    family: str, *, is_dora: bool = False, is_uniform: bool = False
) -> dict[str, Factors]:
    """Make factors for every kind of layer; with `is_uniform`, all have one rank and one alpha."""
    module = parts(family)
    targets = UNET_TARGETS + ENCODER_TARGETS
    adapter = inject(module, targets, LowRank(4, 6, is_dora=is_dora))
    draw = torch.Generator().manual_seed(0)
    adapter.reset(0, draw)
    with torch.no_grad():
        for layer in adapter.layers.values():
            layer.up[0] = 0.1 * torch.randn(layer.up[0].shape, generator=draw)
            if layer.magnitude is not None:
                layer.magnitude[0] *= 1.1
    drawn = collect(adapter.state(0), alpha=6)
    odd = {name: Factors(f.down[:2], f.up[:, :2], 3, f.magnitude)
           for name, f in drawn.items() if name.endswith("to_k")}  # fmt: skip
    return drawn if is_uniform else drawn | odd


def merged_outputs(family: str, adapter: Adapters) -> Tensor:
    """Return the outputs of a pipeline's parts with an adapter merged by dbray."""
    pipe = pipeline(family)
    base = loaded_outputs(pipe)
    module = parts(family, pipe)
    is_dora = any(f.magnitude is not None for f in adapter.values())
    injected = inject(module, UNET_TARGETS + ENCODER_TARGETS, LowRank(4, 4, is_dora=is_dora))
    injected.load(0, *to_state(adapter, injected.layers))
    injected.merge(0)
    merged = loaded_outputs(pipe)
    assert (merged - base).abs().max() > 1e-2
    return merged


def loaded_outputs(pipe: Any) -> Tensor:
    """Return the outputs of a pipeline's parts."""
    return outputs(pipe.unet, *encoders(pipe))


def encoders(pipe: Any) -> list[nn.Module]:
    return [e for e in (pipe.text_encoder, getattr(pipe, "text_encoder_2", None)) if e is not None]


@torch.no_grad()
def outputs(unet: Any, first: Any, second: Any = None) -> Tensor:
    ids = torch.tensor([[0, 3, 4, 5, 1]])
    latents = torch.linspace(-1, 1, 4 * 8 * 8).view(1, 4, 8, 8)
    added = None
    text = first(ids, output_hidden_states=True).hidden_states[-1]
    if second is not None:
        encoded = second(ids, output_hidden_states=True)
        text = torch.cat([text, encoded.hidden_states[-1]], dim=2)
        added = {"text_embeds": encoded.text_embeds, "time_ids": torch.ones(1, 6)}
    return unet(latents, torch.tensor(500), text, added_cond_kwargs=added).sample


def _encoder(width: int, has_projection: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(width)
    config = CLIPTextConfig(
        vocab_size=64, hidden_size=width, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=16, projection_dim=16, bos_token_id=0,
        eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if has_projection else CLIPTextModel)(config)


def _vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(block_out_channels=(8,), norm_num_groups=8)


def _sdxl_unet() -> Any:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=2, norm_num_groups=8,
        block_out_channels=(16, 32), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(2, 4),
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2), projection_class_embeddings_input_dim=64,
        cross_attention_dim=48,
    )  # fmt: skip
