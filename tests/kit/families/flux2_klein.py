"""A tiny FLUX.2-klein-base: three layers of Qwen3 as text, latents scaled by batch statistics."""

from __future__ import annotations

from typing import Any

from kit.families import text
from kit.families.family import TinyFamily, flow_scheduler, flux2_autoencoder

NUM_LAYERS = 31
"""Layers 9, 18 and 27 are read. With 31, wrong ones (10, 20, 30) exist too, as in Qwen3."""


def make(deep: bool) -> Any:
    from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel

    channels = 4 if deep else 1
    tokenizer = text.qwen_tokenizer()
    transformer = Flux2Transformer2DModel(
        in_channels=4 * channels, num_layers=1, num_single_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=3 * 16, timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )  # fmt: skip
    return Flux2KleinPipeline(
        scheduler=flow_scheduler(shift=3.0, use_dynamic_shifting=True),
        vae=flux2_autoencoder(deep, channels),
        text_encoder=text.qwen3(tokenizer, NUM_LAYERS),
        tokenizer=tokenizer,
        transformer=transformer,
        is_distilled=False,
    )


FLUX2_KLEIN = TinyFamily("Flux2KleinPipeline", make, classes={"tokenizer": "Qwen2TokenizerFast"})
