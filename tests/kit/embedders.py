"""Tiny embedders with random weights, in the layouts of the real ones."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers as t

from kit.families.text import clip_tokenizer

SIDE, PATCH, WIDTH = 32, 8, 16
_VISION = {
    "image_size": SIDE, "patch_size": PATCH, "hidden_size": WIDTH, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 2 * WIDTH,
}  # fmt: skip


def build_clip(folder: Path) -> Path:
    tokenizer = clip_tokenizer()
    text = {
        "vocab_size": len(tokenizer), "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    config = t.CLIPConfig(text_config=text, vision_config=_VISION, projection_dim=8)
    tokenizer.save_pretrained(folder)
    return _save(folder, t.CLIPModel, config, t.CLIPImageProcessorPil(**_sizes()))


def build_dino(folder: Path) -> Path:
    """DINO is published as a ViT, with a pooling layer that was never trained."""
    return _save(folder, t.ViTModel, t.ViTConfig(**_VISION), t.ViTImageProcessorPil(size=_side()))


def build_dinov2(folder: Path) -> Path:
    config = t.Dinov2Config(**_VISION, mlp_ratio=2)
    return _save(folder, t.Dinov2Model, config, t.BitImageProcessorPil(**_sizes()))


def build_dinov2_small(folder: Path) -> Path:
    """The sizes of facebook/dinov2-small."""
    config = t.Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14)
    processor = t.BitImageProcessorPil(
        size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}
    )
    return _save(folder, t.Dinov2Model, config, processor)


def build_clip_base(folder: Path) -> Path:
    """The sizes of openai/clip-vit-base-patch32, with a small vocabulary."""
    tokenizer = clip_tokenizer()
    tokenizer.save_pretrained(folder)
    text = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id}  # fmt: skip
    return _save(folder, t.CLIPModel, t.CLIPConfig(text_config=text), t.CLIPImageProcessorPil())


def _side() -> dict[str, int]:
    return {"height": SIDE, "width": SIDE}


def _sizes() -> dict[str, dict[str, int]]:
    return {"size": {"shortest_edge": SIDE}, "crop_size": _side()}


def _save(folder: Path, model_class, config, processor) -> Path:
    torch.manual_seed(0)
    model_class(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


BUILDERS = {"clip": build_clip, "vit": build_dino, "dinov2": build_dinov2}
