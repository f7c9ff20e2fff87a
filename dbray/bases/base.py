"""What a base is: as found on disk (Base), how it is loaded (Compute), and as loaded (Backbone).

Importing this module loads neither torch nor diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dbray.bases import defaults
from dbray.bases.defaults import Section
from dbray.bases.families.family import Family
from dbray.bases.layout import Layout
from dbray.spec.recipe import Precision, Recipe
from dbray.spec.super_resolution import Enlargement, SuperResolution

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

    from dbray.bases.condition import Condition
    from dbray.bases.low_images import Noising
    from dbray.bases.resident import Resident
    from dbray.bases.schedule import Schedule
    from dbray.spec.sections import Sampler


@dataclass(frozen=True)
class Base:
    """A base model on the local disk.

    `defaults` are what the base's makers recommend: sections of a job, and recipes by `methods`,
    read from a file `dbray.yaml` in its folder, where there is one. `revision` is the commit of a
    base from the hub, and None of any other.
    """

    name: str
    folder: Path
    digest: str
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    revision: str | None = None
    serves: Base | None = None
    """Another base that samples with what is trained on this one, such as one distilled from it."""

    has_weights: bool = True
    """False for configurations alone, of which only a plan can be made."""

    super_resolution: Base | None = None
    """The network that enlarges its images, if it is the first stage of a cascade."""

    scale: int = 1
    """By how much it enlarges a side, if it is a super-resolution network."""

    class_nouns: tuple[str, ...] = ()
    """All class nouns that it knows, where its makers list them in `dbray.yaml`."""

    @property
    def distilled(self) -> str | None:
        """How its files show that it is distilled to few steps; None if they do not."""
        return self.family.distilled(self.layout)

    @property
    def serving(self) -> Base:
        """The base that samples with what is trained on this one."""
        return self.serves or self

    @cached_property
    def layout(self) -> Layout:
        """Its folder."""
        return Layout(self.folder, self.has_weights)

    @property
    def family(self) -> Family:
        """The family of the base."""
        return self.layout.family

    @property
    def resolution(self) -> int:
        """Side in pixels of the images that the base was trained on."""
        return self.family.resolution(self.layout)

    @property
    def digests(self) -> tuple[str, str | None]:
        """Its digest, and that of the network that enlarges its images, if there is one."""
        second = self.super_resolution
        return self.digest, None if second is None else second.digest

    @property
    def enlargement(self) -> int:
        """By how much the stages after it enlarge the sides of an image."""
        second = self.super_resolution
        return 1 if second is None else second.scale * second.enlargement

    def fill(self, section: Section) -> Section:
        """Fill what a section of a job leaves open, as `defaults.fill` does."""
        return defaults.fill(self, section).section

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        """Shape (C, H, W) of the latents of a square image, from the configuration alone."""
        return self.family.latent_shape(self.layout.autoencoder, (resolution, resolution))

    def num_parameters(self, part: str) -> int:
        """Number of parameters of a part."""
        return self.layout.num_parameters(part)


@dataclass(frozen=True)
class Compute:
    """How a base is loaded. `resolution` is in pixels; None: the base's own.

    `half`: denoiser and text encoders whose files are in bfloat16 stay so. None: on GPUs, where
    bf16 is computed in. `visits`: models are in CPU memory, and on the device only
    while they encode; the denoiser is brought there by the engine that trains it.
    """

    device: str = "cpu"
    precision: Precision = "fp32"
    resolution: int | None = None
    gradient_checkpointing: bool = False
    half: bool | None = None
    visits: bool = False
    then: Compute | None = None
    """How the base's super-resolution network is loaded; None: it is not."""

    @classmethod
    def of(cls, device: str, recipe: Recipe, stage: SuperResolution | None = None) -> Compute:
        """Return how a model is loaded to sample from it, with its second stage if it has one."""
        found = cls(device, recipe.precision, recipe.resolution)
        if stage is None:
            return found
        second = cls.of(device, stage.recipe)
        return replace(found, then=replace(second, then=second._untrained(stage.then)))

    def _untrained(self, stage: Enlargement | None) -> Compute | None:
        """Return how a network that is not fine-tuned is loaded after another, if there is one."""
        if stage is None:
            return None
        return Compute(self.device, self.precision, then=self._untrained(stage.then))

    def through(self, base: Base) -> Compute:
        """Return the same for each stage of a base."""
        second = base.super_resolution
        return self if second is None else replace(self, then=self.through(second))


class Backbone(Protocol):
    """A loaded base: it encodes, conditions, denoises and decodes, and has the trained parts."""

    base: Base
    device: torch.device
    resolution: int
    schedule: Schedule
    tokenizers: Mapping[str, Any]
    """Every tokenizer of the base, by the name of its folder."""

    @property
    def super_resolution(self) -> Backbone | None:
        """The next stage, if it is loaded."""
        ...

    @property
    def models(self) -> Mapping[str, nn.Module]:
        """Every model of the base, by the name of its folder; without those of the next stage."""
        ...

    @property
    def is_exact(self) -> bool:
        """Whether it computes in float32 throughout, where rounding is invisible in images."""
        ...

    @property
    def resident(self) -> Resident:
        """The only object that replaces weights, of all stages, and restores the base's."""
        ...

    def network(self, parts: Sequence[str]) -> nn.Module:
        """Make the module for a training step: the denoiser, and text encoders.

        forward(latents_BCHW, timesteps_B, condition: tensors by name) -> prediction. Its children
        are `parts`; if text encoders are among them, it takes the conditions of `tokenize`.
        """
        ...

    def latent_shape(self, size: tuple[int, int] | None = None) -> tuple[int, int, int]:
        """Return the shape (C, H, W) of the latents of an image of (width, height) pixels."""
        ...

    def encode(self, images_NHWC: np.ndarray) -> tuple[Tensor, Tensor]:
        """Encode uint8 images to the mean and standard deviation of their scaled latents."""
        ...

    def condition(self, prompts: Sequence[str]) -> Condition:
        """Encode N prompts with the present text encoders; N rows on the device."""
        ...

    def tokenize(self, prompts: Sequence[str]) -> Condition:
        """Return token ids of N prompts: the condition of a network with text encoders."""
        ...

    def denoise(self, latents_BCHW: Tensor, timesteps_B: Tensor, condition: Condition) -> Tensor:
        """Predict, without gradients, in the schedule's parameterisation; float32 on the CPU."""
        ...

    def decode(self, latents_NCHW: Tensor) -> np.ndarray:
        """Decode scaled latents to uint8 images (N, H, W, 3)."""
        ...

    def low_images(self, images_NHWC: np.ndarray, size: tuple[int, int] | None = None) -> Tensor:
        """Return low-resolution uint8 images as a super-resolution network takes them, on the CPU.

        `size`: (width, height) in pixels of what it draws from them; None: its own.
        """
        ...

    def noising(self, level: int) -> Noising:
        """Return how a super-resolution network's low images are noised at a level."""
        ...

    def scheduler(self, name: Sampler, steps: int, size: tuple[int, int] | None = None) -> Any:
        """Make a fresh sampler of the base, prepared for this number of steps and image size.

        Raises:
            BaseError: the base has no such sampler.
        """
        ...
