"""A tiny Z-Image: one list of tokens for text and image, time that runs from 0 to 1.

Published folders contain Qwen3 with its head (deep) or without (flat).
"""

from __future__ import annotations

from typing import Any

from kit.families import text
from kit.families.family import TinyFamily, autoencoder, flow_scheduler


def make(deep: bool) -> Any:
    from diffusers import ZImagePipeline, ZImageTransformer2DModel

    channels = 16 if deep else 4
    tokenizer = text.qwen_tokenizer()
    transformer = ZImageTransformer2DModel(
        in_channels=channels, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2,
        cap_feat_dim=16, axes_dims=[8, 4, 4], axes_lens=[1024, 64, 64],
    )  # fmt: skip
    language_model = text.qwen3(tokenizer, num_layers=3)
    vae = autoencoder(
        deep, channels, scaling_factor=0.3611, shift_factor=0.1159,
        use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    return ZImagePipeline(
        scheduler=flow_scheduler(shift=6.0),
        vae=vae,
        text_encoder=language_model if deep else language_model.model,
        tokenizer=tokenizer,
        transformer=transformer,
    )


Z_IMAGE = TinyFamily("ZImagePipeline", make)
