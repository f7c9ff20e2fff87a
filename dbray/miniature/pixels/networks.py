"""The networks of the cascade and their sizes, in the layout of DeepFloyd IF.

Owns the architecture and the schedules. Both UNets predict noise and a variance, are told a text by
attention at low resolutions and by a pooled vector everywhere, and are narrow where pictures are
large. Results are typed `Any`, as in `dbray.miniature.networks`.
"""

from __future__ import annotations

from typing import Any

TEXT_WIDTH = 96
TEXT_LENGTH = 77
"""What `IFPipeline` pads every text to."""

SMALL, LARGE = 32, 64


def build_text_encoder(vocabulary_size: int) -> Any:
    """Build a T5 encoder of two layers."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=vocabulary_size,
            d_model=TEXT_WIDTH,
            d_kv=24,
            num_heads=4,
            d_ff=256,
            num_layers=2,
            relative_attention_num_buckets=16,
            relative_attention_max_distance=16,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
    )


def build_first() -> Any:
    """Build the UNet of the first stage: 32 x 32 pixels, attention at 8 x 8 and 4 x 4."""
    return _build_unet(
        sample_size=SMALL,
        in_channels=3,
        block_out_channels=(32, 64, 128, 160),
        down_block_types=("DownBlock2D",) * 2 + ("SimpleCrossAttnDownBlock2D",) * 2,
        up_block_types=("SimpleCrossAttnUpBlock2D",) * 2 + ("UpBlock2D",) * 2,
    )


def build_super_resolution() -> Any:
    """Build the UNet of super-resolution: 64 x 64 pixels beside the enlarged small picture."""
    return _build_unet(
        sample_size=LARGE,
        in_channels=6,
        block_out_channels=(24, 48, 80, 128),
        down_block_types=("DownBlock2D",) * 3 + ("SimpleCrossAttnDownBlock2D",),
        up_block_types=("SimpleCrossAttnUpBlock2D",) + ("UpBlock2D",) * 3,
        class_embed_type="timestep",
    )


def _build_unet(**settings: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        out_channels=6,
        layers_per_block=1,
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        encoder_hid_dim=TEXT_WIDTH,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=32,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        cross_attention_norm="group_norm",
        resnet_time_scale_shift="scale_shift",
        norm_num_groups=8,
        **settings,
    )


def build_scheduler() -> Any:
    """Build the schedule that both stages draw with."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="epsilon",
        variance_type="learned_range",
        thresholding=True,
        dynamic_thresholding_ratio=0.95,
        sample_max_value=1.0,
    )


def build_image_noising_scheduler() -> Any:
    """Build the schedule of the noise on the picture that super-resolution enlarges."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(beta_schedule="squaredcos_cap_v2")
