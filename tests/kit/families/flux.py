"""A tiny FLUX.1-dev: CLIP's pooled text, T5's tokens, and the guidance scale as an input."""

from __future__ import annotations

from typing import Any

from kit.families import text
from kit.families.family import TinyFamily, autoencoder, flow_scheduler


def make(deep: bool) -> Any:
    from diffusers import FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel

    channels = 4 if deep else 1
    tokenizer, tokenizer_2 = text.clip_tokenizer(), text.t5_tokenizer()
    transformer = FluxTransformer2DModel(
        in_channels=4 * channels, num_layers=1, num_single_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=16,
        guidance_embeds=True, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    vae = autoencoder(
        deep, channels, scaling_factor=0.3611, shift_factor=0.1159,
        use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    return FluxPipeline(
        scheduler=flow_scheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae,
        text_encoder=CLIPTextModel(text.clip_config(tokenizer)),
        tokenizer=tokenizer,
        text_encoder_2=text.t5_encoder(tokenizer_2),
        tokenizer_2=tokenizer_2,
        transformer=transformer,
    )


FLUX = TinyFamily("FluxPipeline", make, classes={"tokenizer_2": "T5TokenizerFast"})
