"""A tiny base of one family: how it is built, loaded as diffusers' pipeline, and sampled."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from diffusers import DiffusionPipeline

SIDE = 32
"""Side in pixels of the images of every tiny base: 8 latents when deep, 32 when flat."""


@dataclass(frozen=True)
class TinyFamily:
    """A family's builder.

    `make` takes True for the deep variant, whose autoencoder divides a side by 4 and whose
    transformer works on patches of 2. The flat variant's latents are as large as its images, which
    hides errors by a factor of two. `options` are passed to each call of the pipeline. `classes`
    are the tokenizer classes in published folders, by part, if transformers 5 has another name for
    the class. Without an autoencoder, the latents are the pixels in both variants.
    """

    pipeline: str
    make: Callable[[bool], DiffusionPipeline]
    options: Mapping[str, Any] = field(default_factory=dict)
    classes: Mapping[str, str] = field(default_factory=dict)
    has_autoencoder: bool = True

    def build(self, folder: Path, deep: bool = True) -> Path:
        """Write the base, always with the same weights."""
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pipeline = self.make(deep)
        _enliven(getattr(pipeline, "transformer", None))
        pipeline.save_pretrained(folder)
        index = json.loads((folder / "model_index.json").read_text())
        index |= {part: ["transformers", name] for part, name in self.classes.items()}
        (folder / "model_index.json").write_text(json.dumps(index, indent=2))
        (folder / "dbray.yaml").write_text(f"recipe:\n  resolution: {SIDE}\n")
        return folder

    def load(self, folder: Path) -> Any:
        """Load diffusers' pipeline from a folder, in float32."""
        import diffusers

        pipeline = getattr(diffusers, self.pipeline).from_pretrained(folder, local_files_only=True)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def draw(self, pipeline: Any, prompt: str, **options: Any) -> np.ndarray:
        """Draw one image in two steps, with noise of seed 0: floats of shape (H, W, 3)."""
        import torch

        values = {"num_inference_steps": 2, "height": SIDE, "width": SIDE, "output_type": "np",
                  "generator": torch.Generator().manual_seed(0)}  # fmt: skip
        return pipeline(prompt=prompt, **(values | dict(self.options) | options)).images[0]


def autoencoder(deep: bool, channels: int, **options: Any) -> Any:
    """Make an AutoencoderKL: one level, or three."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(**_levels(deep), latent_channels=channels, **options)


def flux2_autoencoder(deep: bool, channels: int) -> Any:
    """Make FLUX.2's autoencoder, with statistics of its latents that are not 0 and 1."""
    import torch
    from diffusers import AutoencoderKLFlux2

    vae = AutoencoderKLFlux2(**_levels(deep), latent_channels=channels)
    vae.bn.running_mean.copy_(torch.randn(4 * channels) / 2)
    vae.bn.running_var.copy_(torch.rand(4 * channels) + 0.5)
    return vae


def flow_scheduler(**options: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**options)


def _enliven(transformer: Any) -> None:
    """Make a transformer's output depend visibly on its text; as initialised it hardly does."""
    import torch

    for module in transformer.modules() if transformer else ():
        if isinstance(module, torch.nn.Linear):
            module.weight.data.mul_(2)


def _levels(deep: bool) -> dict[str, Any]:
    levels = 3 if deep else 1
    return {
        "sample_size": SIDE, "block_out_channels": (8,) * levels,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": 1, "norm_num_groups": 4,
    }  # fmt: skip
