"""A tiny DeepFloyd IF: its first stage over pixels, with a learnt variance."""

from __future__ import annotations

from typing import Any

from kit.families import text
from kit.families.family import SIDE, TinyFamily

_DOWN = ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D")
_UP = ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D")


def unet(width: int, **changes: Any) -> Any:
    """Make a UNet with the blocks of IF, for a T5 of this width."""
    from diffusers import UNet2DConditionModel

    options = {
        "sample_size": SIDE, "in_channels": 3, "out_channels": 6, "layers_per_block": 1,
        "block_out_channels": (16, 24), "norm_num_groups": 8, "attention_head_dim": 8,
        "down_block_types": _DOWN, "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": _UP, "cross_attention_dim": 32, "encoder_hid_dim": width,
        "addition_embed_type": "text", "addition_embed_type_num_heads": 2,
        "cross_attention_norm": "group_norm", "resnet_time_scale_shift": "scale_shift",
        "act_fn": "gelu",
    }  # fmt: skip
    return UNet2DConditionModel(**(options | changes))


def scheduler(**changes: Any) -> Any:
    from diffusers import DDPMScheduler

    options = {
        "beta_schedule": "squaredcos_cap_v2", "thresholding": True, "sample_max_value": 1.5,
        "dynamic_thresholding_ratio": 0.95, "variance_type": "learned_range",
    }  # fmt: skip
    return DDPMScheduler(**(options | changes))


def parts(**changes: Any) -> dict[str, Any]:
    """Make the parts of any stage, with changes to its UNet."""
    tokenizer = text.t5_tokenizer()
    return {
        "tokenizer": tokenizer, "text_encoder": text.t5_encoder(tokenizer, width=24),
        "unet": unet(24, **changes), "scheduler": scheduler(), "safety_checker": None,
        "feature_extractor": None, "watermarker": None, "requires_safety_checker": False,
    }  # fmt: skip


def make(deep: bool) -> Any:
    from diffusers import IFPipeline

    return IFPipeline(**parts(layers_per_block=2 if deep else 1))


DEEPFLOYD_IF = TinyFamily(
    "IFPipeline",
    make,
    options={"clean_caption": False},
    classes={"tokenizer": "T5TokenizerFast"},
    has_autoencoder=False,
)
