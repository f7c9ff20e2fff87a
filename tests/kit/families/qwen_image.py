"""A tiny Qwen-Image: text in a fixed template, latents of a video autoencoder with one frame."""

from __future__ import annotations

from typing import Any

from kit.families import text
from kit.families.family import TinyFamily, flow_scheduler


def make(deep: bool) -> Any:
    from diffusers import (
        AutoencoderKLQwenImage,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )

    tokenizer = text.qwen_tokenizer()
    transformer = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    vae = AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2, 2] if deep else [1], num_res_blocks=1,
        temperal_downsample=[False, True] if deep else [],
        latents_mean=[-0.75, 0.1, 0.96, -0.29], latents_std=[2.8, 1.4, 1.9, 3.2],
    )  # fmt: skip
    return QwenImagePipeline(
        scheduler=flow_scheduler(
            use_dynamic_shifting=True, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
        ),
        vae=vae,
        text_encoder=text.qwen2_5_vl(tokenizer),
        tokenizer=tokenizer,
        transformer=transformer,
    )


QWEN_IMAGE = TinyFamily("QwenImagePipeline", make, {"negative_prompt": " "})
