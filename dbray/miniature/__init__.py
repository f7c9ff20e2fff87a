"""The miniature: a small drawn world, and a base model trained on it, inside the package.

This file owns the way to the shipped weights and nothing else, so that importing it costs nothing.
"""

from __future__ import annotations

from pathlib import Path


def weights_path() -> Path:
    """Return the folder that `diffusers.StableDiffusionPipeline.from_pretrained` loads."""
    return Path(__file__).resolve().parent / "weights"
