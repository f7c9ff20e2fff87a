"""Tiny random denoisers, in memory."""

from __future__ import annotations

import torch
from torch import nn

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
CONVOLUTIONS = ("conv_in", "conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "proj_in")


def tiny_unet() -> nn.Module:
    """Make a UNet of the SD 1 layout with fixed weights: 4 x 8 x 8 latents, text of width 16."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, norm_num_groups=8,
        block_out_channels=(16, 32), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=16,
        attention_head_dim=8,
    )  # fmt: skip


def tiny_transformer() -> nn.Module:
    """Make an SD 3 transformer: 4 x 8 x 8 latents, text of width 16, pooled text of width 24."""
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(0)
    return SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2,
        attention_head_dim=8, num_attention_heads=4, caption_projection_dim=32,
        joint_attention_dim=16, pooled_projection_dim=24, pos_embed_max_size=8,
    )  # fmt: skip
