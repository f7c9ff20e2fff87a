"""A tiny SD3 (flat) and SD3.5 (deep: normalised queries and keys, a second attention)."""

from __future__ import annotations

from typing import Any

from kit.families import text
from kit.families.family import TinyFamily, autoencoder, flow_scheduler


def make(deep: bool) -> Any:
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection

    tokenizer, tokenizer_2 = text.clip_tokenizer(), text.clip_tokenizer(pad_token="!")
    tokenizer_3 = text.t5_tokenizer()
    narrow = text.clip_config(tokenizer, hidden_size=8)
    wide = text.clip_config(tokenizer_2, hidden_size=16, hidden_act="gelu")
    transformer = SD3Transformer2DModel(
        sample_size=8 if deep else 32, patch_size=2 if deep else 1, in_channels=4, out_channels=4,
        num_layers=2, attention_head_dim=8, num_attention_heads=4, joint_attention_dim=32,
        caption_projection_dim=32, pooled_projection_dim=8 + 16, pos_embed_max_size=40,
        qk_norm="rms_norm" if deep else None, dual_attention_layers=(0,) if deep else (),
    )  # fmt: skip
    vae = autoencoder(
        deep, channels=4, scaling_factor=1.5305, shift_factor=0.0609,
        use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=flow_scheduler(shift=3.0),
        vae=vae,
        text_encoder=CLIPTextModelWithProjection(narrow),
        text_encoder_2=CLIPTextModelWithProjection(wide),
        text_encoder_3=text.t5_encoder(tokenizer_3),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        tokenizer_3=tokenizer_3,
    )


SD3 = TinyFamily("StableDiffusion3Pipeline", make, classes={"tokenizer_3": "T5TokenizerFast"})
