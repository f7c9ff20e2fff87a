"""Export the cascade: two folders which diffusers' pipelines of DeepFloyd IF read.

Owns their layout. `first` is an `IFPipeline`, and `super_resolution` an `IFSuperResolutionPipeline`
with the same tokenizer and text encoder. Both are written under another name and renamed together;
files written by hand stay.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from dbray.miniature.export import KEPT, declare_float32, swap
from dbray.miniature.pixels import networks
from dbray.miniature.pixels.tokens import load_tokenizer
from dbray.miniature.pixels.training import TOKENIZER, load_first, load_super_resolution

logger = logging.getLogger(__name__)

FIRST, SUPER_RESOLUTION = "first", "super_resolution"
INDEX: dict[str, Any] = {
    "_class_name": "IFPipeline",
    "_diffusers_version": "0.42.1",
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDPMScheduler"],
    "text_encoder": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "T5Tokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "watermarker": [None, None],
}


def export_cascade(folder: Path, target: Path) -> None:
    """Write the averaged weights of `folder`'s checkpoints to `target`, as 16-bit safetensors."""
    partial = target.with_name(target.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    tokenizer_folder = folder / TOKENIZER
    num_tokens = len(load_tokenizer(tokenizer_folder))
    first, text_encoder = load_first(folder, num_tokens)
    _write_stage(partial / FIRST, INDEX, first)
    index = {
        **INDEX,
        "_class_name": "IFSuperResolutionPipeline",
        "image_noising_scheduler": ["diffusers", "DDPMScheduler"],
    }
    second = partial / SUPER_RESOLUTION
    _write_stage(second, index, load_super_resolution(folder))
    networks.build_image_noising_scheduler().save_pretrained(second / "image_noising_scheduler")
    text_encoder = text_encoder.half()
    for stage in (partial / FIRST, second):
        shutil.copytree(tokenizer_folder, stage / "tokenizer")
        text_encoder.save_pretrained(stage / "text_encoder")
        declare_float32(stage / "text_encoder" / "config.json")
    _keep(partial, target)
    for path in partial.rglob("*.safetensors"):
        path.chmod(0o644)  # readable by all, because it is in the package
    swap(partial, target)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    logger.info("export cascade=%s size_mb=%.1f", target, size / 1e6)


def _write_stage(folder: Path, index: dict[str, Any], unet: Any) -> None:
    unet.half().save_pretrained(folder / "unet")
    networks.build_scheduler().save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _keep(partial: Path, target: Path) -> None:
    for name in KEPT:
        for path in target.rglob(name):
            shutil.copy(path, partial / path.relative_to(target))
