"""Tiny super-resolution networks: DeepFloyd IF II, and the x4 upscaler."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kit.families import deepfloyd_if, text
from kit.families.family import TinyFamily, autoencoder

LOW_SIDE = 8
"""Side of the images that they enlarge to 32 pixels."""


def build_first(folder: Path, side: int = LOW_SIDE) -> Path:
    """Write a DeepFloyd IF I whose images have this side."""
    deepfloyd_if.DEEPFLOYD_IF.build(folder)
    file = folder / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"sample_size": side}))
    (folder / "dbray.yaml").unlink()
    return folder


def make_if_ii(deep: bool) -> Any:
    from diffusers import IFSuperResolutionPipeline

    parts = deepfloyd_if.parts(
        in_channels=6, class_embed_type="timestep", layers_per_block=2 if deep else 1
    )
    noising = deepfloyd_if.scheduler(
        variance_type="fixed_small", thresholding=False, clip_sample=False
    )
    return IFSuperResolutionPipeline(**parts, image_noising_scheduler=noising)


def make_x4(deep: bool) -> Any:
    from diffusers import (
        DDIMScheduler,
        DDPMScheduler,
        StableDiffusionUpscalePipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextModel

    tokenizer = text.clip_tokenizer()
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4 + 3, out_channels=4, layers_per_block=1, norm_num_groups=8,
        block_out_channels=(16, 32), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=16,
        attention_head_dim=8, use_linear_projection=True, only_cross_attention=(True, False),
        num_class_embeds=1000,
    )  # fmt: skip
    noise = {"beta_schedule": "scaled_linear", "beta_start": 0.0001, "beta_end": 0.02}
    return StableDiffusionUpscalePipeline(
        vae=autoencoder(deep, channels=4, scaling_factor=0.08333),
        text_encoder=CLIPTextModel(text.clip_config(tokenizer, hidden_size=16)),
        tokenizer=tokenizer,
        unet=unet,
        low_res_scheduler=DDPMScheduler(**noise),
        scheduler=DDIMScheduler(
            **noise, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False,
            steps_offset=1,
        ),
    )  # fmt: skip


IF_II = TinyFamily(
    "IFSuperResolutionPipeline",
    make_if_ii,
    options={"clean_caption": False},
    classes={"tokenizer": "T5TokenizerFast"},
    has_autoencoder=False,
)
X4 = TinyFamily("StableDiffusionUpscalePipeline", make_x4)

SUPER_RESOLUTION: dict[str, TinyFamily] = {"deepfloyd_if_ii": IF_II, "x4_upscaler": X4}


def build_cascade(folder: Path, name: str) -> Path:
    """Write a cascade that ends in this network; its first stage draws 8 pixels."""
    build_first(folder / "first")
    SUPER_RESOLUTION[name].build(folder / "super_resolution")
    return folder
