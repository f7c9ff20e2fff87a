"""Tiny random bases in the diffusers layout, built offline."""

from __future__ import annotations

import json
from pathlib import Path


def build_tiny_base(folder: Path, prediction_type: str = "epsilon") -> Path:
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    vocabulary_size = write_tokenizer(folder / "tokenizer")
    UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, norm_num_groups=8,
        block_out_channels=(16, 32), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=16,
        attention_head_dim=8,
    ).save_pretrained(folder / "unet")  # fmt: skip
    AutoencoderKL(
        sample_size=32, latent_channels=4, layers_per_block=1, norm_num_groups=8,
        block_out_channels=(8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, scaling_factor=0.5,
    ).save_pretrained(folder / "vae")  # fmt: skip
    CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary_size, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=16, projection_dim=16,
            bos_token_id=vocabulary_size - 2, eos_token_id=vocabulary_size - 1,
            pad_token_id=vocabulary_size - 1,
        )
    ).save_pretrained(folder / "text_encoder")  # fmt: skip
    DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
        prediction_type=prediction_type,
    ).save_pretrained(folder / "scheduler")  # fmt: skip
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def write_tokenizer(folder: Path) -> int:
    """Write a CLIP BPE tokenizer with words of prompts and 400 rare two-letter tokens."""
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    vocabulary = {token: i for i, token in enumerate([*letters, *(c + "</w>" for c in letters)])}
    merges = []

    def merge(left: str, right: str) -> None:
        if left + right not in vocabulary:
            merges.append(f"{left} {right}")
            vocabulary[left + right] = len(vocabulary)

    for first in "zxqvjkwbfg":
        for second in "bcdfghjklmnpqrstvwxz0123456789":
            merge(first, second + "</w>")
    for word in ("photo", "of", "dog", "cat", "in", "the", "on", "beach", "clock"):
        left = word[0]
        for index, letter in enumerate(word[1:], start=1):
            last = index == len(word) - 1
            merge(left, letter + ("</w>" if last else ""))
            left += letter
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    config = {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": 16, "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(vocabulary)
