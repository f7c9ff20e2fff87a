"""What one subject is trained on: latents and conditions, encoded once.

Shape suffixes: V views, K class images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from dbray.bases import Backbone
from dbray.bases.condition import Condition
from dbray.bases.low_images import LowImages
from dbray.spec.prompts import fill_prompt
from dbray.spec.recipe import Recipe


@dataclass(frozen=True)
class Latents:
    """Images as the autoencoder sees them: mean and standard deviation, sampled each step."""

    mean_VCHW: Tensor | Sequence[Tensor]
    std_VCHW: Tensor | Sequence[Tensor]
    """Lists where images have different sizes."""
    low: LowImages | None = None
    """The low-resolution images beside them, for a super-resolution network."""

    def sample(self, index: int, generator: torch.Generator) -> Tensor:
        """Draw the latents (C, H, W) of one image from its posterior."""
        mean_CHW = self.mean_VCHW[index]
        noise_CHW = torch.randn(mean_CHW.shape, generator=generator)
        return mean_CHW + self.std_VCHW[index] * noise_CHW

    def condition(self, text: Condition, index: int, generator: torch.Generator) -> Condition:
        """Return the condition of one image, given that of its text."""
        return text if self.low is None else self.low.add(text, index, generator)

    def __len__(self) -> int:
        return len(self.mean_VCHW)


@dataclass(frozen=True)
class TrainingData:
    """All that one subject's steps draw from, encoded once."""

    subject_id: str
    views: Latents
    views_of_image: tuple[tuple[int, ...], ...]
    instance: Condition
    """Of each image's prompt; rows as `views_of_image`."""
    prior: Latents | None
    """Latents of the class rows; None trains without prior preservation."""
    prior_prompt: Condition
    """Of the prompt of the class rows, one row."""
    lessons: Mapping[int, Tensor] = field(default_factory=dict)
    """Targets of this rank's class rows by step, if not the schedule's: see `teacher`."""
    photographs: tuple[np.ndarray, ...] = ()
    """One crop of each image, uint8 HWC."""


def encode_subject(
    backbone: Backbone,
    views: Sequence[Sequence[np.ndarray]],
    recipe: Recipe,
    noise_level: int | None = None,
) -> tuple[Latents, tuple[tuple[int, ...], ...]]:
    """Encode every view of every image once.

    Args:
        backbone: the base with its own weights.
        views: of each image, its crops (uint8 HWC, of different sizes with `crop: bucket`).
        recipe: says whether mirrored views are added.
        noise_level: of the low images, for a super-resolution network; their views have one size.

    Returns:
        The latents of all views, and for each image the indices of its views.
    """
    pixels: list[np.ndarray] = []
    views_of_image = []
    for crops in views:
        of_image = [*crops, *(crop[:, ::-1] for crop in crops)] if recipe.flip else list(crops)
        views_of_image.append(tuple(range(len(pixels), len(pixels) + len(of_image))))
        pixels.extend(of_image)
    latents = _encode(backbone, pixels)
    if noise_level is not None:
        low = shrunk(np.stack(pixels), backbone.base.scale)
        latents = replace(latents, low=low_images(backbone, low, noise_level))
    return latents, tuple(views_of_image)


def shrunk(images_NHWC: np.ndarray, scale: int) -> np.ndarray:
    """Average the areas of uint8 images that a pixel of a smaller one stands for."""
    num, height, width, channels = images_NHWC.shape
    areas = images_NHWC.reshape(num, height // scale, scale, width // scale, scale, channels)
    return areas.mean(axis=(2, 4)).round().astype(np.uint8)


def low_images(backbone: Backbone, images_NHWC: np.ndarray, noise_level: int) -> LowImages:
    """Make the low images of a super-resolution network from uint8 images."""
    return LowImages(images_NHWC, backbone.low_images, backbone.noising(noise_level))


def _encode(backbone: Backbone, pixels: Sequence[np.ndarray]) -> Latents:
    """Encode images, those of one size together."""
    groups = groups_of([image.shape for image in pixels])
    if len(groups) == 1:
        return Latents(*backbone.encode(np.stack(pixels)))
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for group in groups:
        means, deviations = backbone.encode(np.stack([pixels[index] for index in group]))
        found |= dict(zip(group, zip(means, deviations, strict=True), strict=True))
    both = [found[index] for index in range(len(pixels))]
    return Latents([mean for mean, _ in both], [deviation for _, deviation in both])


def groups_of(shapes: Sequence[Hashable]) -> list[list[int]]:
    """Indices of equal shapes, in the order in which they first appear."""
    return [[i for i, one in enumerate(shapes) if one == shape] for shape in dict.fromkeys(shapes)]


def instance_prompts(
    identifier: str,
    class_noun: str,
    captions: Sequence[str] | None,
    recipe: Recipe,
    num_images: int,
) -> list[str]:
    """One prompt per image: its caption or, without captions, the recipe's prompt."""
    templates = captions or [recipe.prompt] * num_images
    return [fill_prompt(template, class_noun, identifier) for template in templates]
