"""Export checkpoints to the weights folder in the package.

Owns the layout of `weights/`, which `diffusers.StableDiffusionPipeline.from_pretrained` reads. The
folder is written under another name and renamed, so that it is never incomplete; files written by
hand stay.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from dbray.miniature import data, networks
from dbray.miniature.autoencoder import load_autoencoder
from dbray.miniature.data import Rows
from dbray.miniature.denoiser import load_unet, load_wordings, scaling_factor
from dbray.miniature.embedding import load_averaged

logger = logging.getLogger(__name__)

KEPT = ("README.md", "dbray.yaml")
"""Written by hand: the model card, and the recommended recipe."""
RARE_STRENGTH = 2.0
"""Factor for the length of tokens in no caption, which keep their initial values in training.

They are the identifiers of subjects. At 1, some cannot distinguish a subject from its class; at
3, about the length of words, some have a visible effect before they are trained.
"""
INDEX: dict[str, Any] = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.42.1",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDPMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def export(folder: Path, weights: Path) -> None:
    """Write the averaged weights of `folder`'s checkpoints to `weights`, as 16-bit safetensors."""
    partial = weights.with_name(weights.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    # the tokenizer of the training, even if the word lists have changed since
    shutil.copytree(folder / "tokenizer", partial / "tokenizer")
    vocabulary_size = len(json.loads((partial / "tokenizer" / "vocab.json").read_text()))
    unet, text_encoder = load_unet(folder, vocabulary_size)
    _strengthen(text_encoder, load_wordings(folder).ids)
    autoencoder = load_autoencoder(folder, torch.device("cpu"))
    latents = Rows(data.load_arrays(folder / "cache", "latents"))
    autoencoder.register_to_config(scaling_factor=scaling_factor(latents))
    for name, model in (("vae", autoencoder), ("unet", unet), ("text_encoder", text_encoder)):
        model.half().save_pretrained(partial / name, safe_serialization=True)
    declare_float32(partial / "text_encoder" / "config.json")
    _name_as_transformers_4(partial / "text_encoder" / "model.safetensors")
    networks.build_scheduler().save_pretrained(partial / "scheduler")
    (partial / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n")
    for name in KEPT:
        if (weights / name).exists():
            shutil.copy(weights / name, partial / name)
    for path in partial.rglob("*.safetensors"):
        path.chmod(0o644)  # readable by all, because it is in the package
    swap(partial, weights)
    size = sum(path.stat().st_size for path in weights.rglob("*") if path.is_file())
    logger.info("export weights=%s size_mb=%.1f", weights, size / 1e6)


def export_embedders(folder: Path, target: Path) -> None:
    """Write the embedders with checkpoints in `folder` to `target`, one folder each.

    They are 16-bit safetensors with a processor of images; the CLIP also has its tokenizer.
    """
    from transformers import CLIPImageProcessorPil, ViTImageProcessorPil

    partial = target.with_name(target.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(folder / "tokenizer", partial / "clip")
    num_tokens = len(json.loads((partial / "clip" / "vocab.json").read_text()))
    side = {"height": networks.IMAGE_SIZE, "width": networks.IMAGE_SIZE}
    scale: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    processors = {
        "clip": CLIPImageProcessorPil(
            size={"shortest_edge": networks.IMAGE_SIZE}, crop_size=side, **scale
        ),
        "vit": ViTImageProcessorPil(size=side, **scale),
    }
    models = {
        "clip": networks.build_clip(num_tokens, num_tokens - 1),
        "vit": networks.build_vit(),
    }
    for name, model in models.items():
        load_averaged(folder, name, model).half().save_pretrained(partial / name)
        processors[name].save_pretrained(partial / name)
        declare_float32(partial / name / "config.json")
    for path in partial.rglob("*.safetensors"):
        path.chmod(0o644)
    swap(partial, target)


@torch.no_grad()
def _strengthen(text_encoder: Any, captions: np.ndarray) -> None:
    embeddings = text_encoder.get_input_embeddings().weight
    is_rare = torch.ones(len(embeddings), dtype=torch.bool)
    is_rare[np.unique(captions).astype(np.int64)] = False
    embeddings[is_rare] *= RARE_STRENGTH


def declare_float32(config_path: Path) -> None:
    """Declare 16-bit weights as float32, so that transformers computes in it.

    diffusers loads UNets and VAEs in float32 anyway, and a half-precision text encoder would not
    match them.
    """
    config = json.loads(config_path.read_text())
    config["dtype"] = "float32"
    config_path.write_text(json.dumps(config, indent=2) + "\n")


def _name_as_transformers_4(file: Path) -> None:
    """Add the prefix 'text_model.' to every name: transformers 4 needs it, and 5 accepts it."""
    tensors = {f"text_model.{name}": tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


def swap(partial: Path, target: Path) -> None:
    """Put a finished folder in the place of `target`."""
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)
