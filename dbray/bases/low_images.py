"""What a super-resolution network reads besides its text: a low-resolution image, and its noise.

Training and sampling noise it by this code alone, so that the network is fine-tuned on exactly what
it is given when it draws. In a Condition, LOW is the image as the family's network takes it, first
without noise, and LEVEL its noise level. Source: Ho et al. 2021 (arXiv 2106.15282), conditioning
augmentation. Shape suffixes: N images, C channels, H height, W width, T noise levels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from dbray.bases.condition import Condition
from dbray.bases.families.super_resolution import LEVEL, LOW


@dataclass(frozen=True)
class Noising:
    """Noises low-resolution images at one level."""

    alphas_cumprod_T: Tensor
    level: int

    @classmethod
    def of(cls, config: Mapping[str, Any], level: int) -> Noising:
        """Make it from the configuration of a base's scheduler for low-resolution images."""
        scheduler: Any = DDPMScheduler.from_config(dict(config))
        return cls(scheduler.alphas_cumprod, level)

    def noised(self, condition: Condition, noise: Tensor) -> Condition:
        """Noise the low images of a condition, one row or several; add their level."""
        image = condition.tensors[LOW]
        alpha = self.alphas_cumprod_T[self.level].to(image.device)
        noisy = alpha.sqrt() * image + (1 - alpha).sqrt() * noise.to(image.device)
        levels = torch.full(image.shape[:-3], self.level, device=image.device)
        return Condition({**condition.tensors, LOW: noisy, LEVEL: levels})


@dataclass(frozen=True)
class LowImages:
    """The low-resolution images beside those of a subject or a class, as small bytes."""

    images_NHWC: np.ndarray
    prepare: Callable[[np.ndarray], Tensor]
    """Makes them what the network takes: `Backbone.low_images`."""
    noising: Noising

    def add(self, condition: Condition, index: int, generator: torch.Generator) -> Condition:
        """Add an image, freshly noised, to the condition of one row."""
        [image_CHW] = self.prepare(self.images_NHWC[index : index + 1])
        noise_CHW = torch.randn(image_CHW.shape, generator=generator)
        return self.noising.noised(condition.with_tensor(LOW, image_CHW), noise_CHW)
