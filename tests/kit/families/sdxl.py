"""A tiny SDXL: two text encoders of different widths, pooled text and sizes."""

from __future__ import annotations

from typing import Any

from kit.families import text
from kit.families.family import TinyFamily, autoencoder


def make(deep: bool) -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    tokenizer, tokenizer_2 = text.clip_tokenizer(), text.clip_tokenizer(pad_token="!")
    narrow = text.clip_config(tokenizer, hidden_size=16)
    wide = text.clip_config(tokenizer_2, hidden_size=24, projection_dim=32, hidden_act="gelu")
    unet = UNet2DConditionModel(
        sample_size=8 if deep else 32, in_channels=4, out_channels=4, layers_per_block=1,
        block_out_channels=(16, 32), norm_num_groups=8, attention_head_dim=(2, 4),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 2),
        use_linear_projection=True, cross_attention_dim=16 + 24,
        addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=autoencoder(deep, channels=4, scaling_factor=0.13025),
        text_encoder=CLIPTextModel(narrow),
        text_encoder_2=CLIPTextModelWithProjection(wide),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=unet,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
            timestep_spacing="leading", steps_offset=1,
        ),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )  # fmt: skip


SDXL = TinyFamily("StableDiffusionXLPipeline", make)
