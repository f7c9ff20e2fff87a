"""The networks of the miniature and their sizes.

Owns the architecture. Widths put the work where the latents are small: every fine-tuning step of a
demo, test or benchmark costs one pass of the UNet. Results are typed `Any`: the annotations of
diffusers and transformers claim tuples of one element, and models whose `to` takes no device.
"""

from __future__ import annotations

from typing import Any

LATENT_CHANNELS = 8
LATENT_SIZE = 16
TEXT_WIDTH = 128
TEXT_LENGTH = 32
IMAGE_SIZE = 64
PATCH_SIZE = 8
"""Of the embedders."""


def build_autoencoder() -> Any:
    """Build the autoencoder: 64 x 64 pixels to 16 x 16 latents of eight channels."""
    from diffusers import AutoencoderKL

    blocks: Any = ("DownEncoderBlock2D",) * 3, ("UpDecoderBlock2D",) * 3, (16, 32, 64)
    down, up, widths = blocks
    return AutoencoderKL(
        down_block_types=down,
        up_block_types=up,
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )


def build_text_encoder(vocabulary_size: int, end_token: int) -> Any:
    """Build a two-layer CLIP text transformer."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary_size,
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TEXT_LENGTH,
            bos_token_id=end_token - 1,
            eos_token_id=end_token,
            pad_token_id=end_token,
        )
    )


def build_unet() -> Any:
    """Build the UNet: cross-attention at 8 x 8 and 4 x 4, plain residual blocks at 16 x 16."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 128, 160),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,  # diffusers means the number of heads: 32, then 40 wide
        norm_num_groups=16,
    )


def build_clip(vocabulary_size: int, end_token: int) -> Any:
    """A CLIP of 2.0 million parameters: images of 64 x 64 in patches of 8, texts of 32 tokens."""
    from transformers import CLIPConfig, CLIPModel

    text = {
        "vocab_size": vocabulary_size,
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 4 * TEXT_WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": TEXT_LENGTH,
        "bos_token_id": end_token - 1,
        "eos_token_id": end_token,
        "pad_token_id": end_token,
    }
    vision = {
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=TEXT_WIDTH))


def build_vit() -> Any:
    """A ViT in the layout of DINO's; the embedding of an image is the first of its last states."""
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        hidden_size=160,
        intermediate_size=480,
        num_hidden_layers=5,
        num_attention_heads=4,
    )
    return ViTModel(config, add_pooling_layer=False)


def build_scheduler() -> Any:
    """Build Stable Diffusion's noise schedule."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        clip_sample=False,
        steps_offset=1,
    )
