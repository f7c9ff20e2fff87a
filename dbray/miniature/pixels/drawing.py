"""Draw with the cascade: the first stage's pictures, then their super-resolution.

Owns how both pipelines are called; the sheet and the benchmark draw with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dbray.bases.families.deepfloyd_if import DeepFloydIF
from dbray.miniature.pixels.export import FIRST, SUPER_RESOLUTION


@dataclass(frozen=True, slots=True)
class Drawing:
    """How the cascade draws: steps and guidance of both stages, and the second's noise level."""

    steps: tuple[int, int] = (25, 15)
    guidance: tuple[float, float] = (6.0, 2.0)
    noise_level: int = 20


class Cascade:
    """Both pipelines of a folder, on the CPU."""

    def __init__(self, folder: Path) -> None:
        from diffusers import IFPipeline, IFSuperResolutionPipeline

        first, second = folder / FIRST, folder / SUPER_RESOLUTION
        self.first: Any = IFPipeline.from_pretrained(first, local_files_only=True)
        # Both folders hold the same text encoder, which is loaded once.
        self.second: Any = IFSuperResolutionPipeline.from_pretrained(
            second, text_encoder=None, tokenizer=None, local_files_only=True
        )
        for pipe in (self.first, self.second):
            pipe.set_progress_bar_config(disable=True)

    def sample_as_recommended(self) -> None:
        """Draw with dpm++_sde from now on: the sampler of the files leaves a grain in few steps."""
        for pipe in (self.first, self.second):
            pipe.scheduler = DeepFloydIF().scheduler("dpm++_sde", pipe.scheduler.config)

    def draw(
        self, prompts: Sequence[str], seeds: Sequence[int], how: Drawing | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return small and large pictures, uint8 N, H, W, 3; one seed for each prompt."""
        how = how or Drawing()
        small = self.first(
            num_inference_steps=how.steps[0],
            guidance_scale=how.guidance[0],
            **self._common(prompts, seeds),
        ).images
        return to_bytes(small), self.refine(small, prompts, seeds, how)

    def refine(
        self, small: Tensor, prompts: Sequence[str], seeds: Sequence[int], how: Drawing
    ) -> np.ndarray:
        """Return large pictures, uint8, of small ones in [-1, 1]."""
        large = self.second(
            image=small,
            num_inference_steps=how.steps[1],
            guidance_scale=how.guidance[1],
            noise_level=how.noise_level,
            **self._common(prompts, seeds),
        ).images
        return to_bytes(large)

    def _common(self, prompts: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
        texts, blanks = self.first.encode_prompt(list(prompts))
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return {
            "prompt_embeds": texts,
            "negative_prompt_embeds": blanks,
            "generator": generators,
            "output_type": "pt",
        }


def to_bytes(images: Tensor) -> np.ndarray:
    """Return images in [-1, 1] as uint8 N, H, W, 3."""
    scaled = (images.clamp(-1, 1) + 1) * 127.5
    return scaled.round().byte().permute(0, 2, 3, 1).numpy()
