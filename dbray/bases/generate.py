"""Prompts + weights + seeds -> images: the one sampling loop, for class images, previews, serving.

Every image has its own generator, seeded on the CPU, so that it depends only on its prompt, seed
and Sampling, and, except for rounding, neither on the other images of the batch, the number of
workers nor the device. Does not know Ray or storage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dbray.bases import Backbone, Base
from dbray.bases.condition import Condition
from dbray.bases.families.super_resolution import LOW, SuperResolution
from dbray.spec.sections import Previews, Prior, Sampler
from dbray.spec.super_resolution import Enlargement

OnStep = Callable[[int, Tensor], None]

_LATENTS_PER_BATCH = 8 * 64 * 64
"""Latent positions sampled at once: 8 images of 512 px, or more smaller ones."""


@dataclass(frozen=True)
class Sampling:
    """How images are sampled; requests with equal Sampling can share a batch."""

    sampler: Sampler = "ddim"
    steps: int = 50
    guidance: float = 7.5
    negative_prompt: str = ""
    noise_level: int = 0
    """Of the low-resolution images, for a super-resolution network."""
    then: Sampling | None = None
    """How the next stage enlarges the images; None: it does not."""

    @classmethod
    def of(cls, section: Prior | Previews, negative_prompt: str = "") -> Sampling:
        """Return what a section of a job says."""
        return cls(section.sampler, section.steps, section.guidance, negative_prompt)

    def through(self, stage: Enlargement | None) -> Sampling:
        """Return the same, with the stages after the first as a job or a record says."""
        if stage is None:
            return replace(self, then=None)
        own = Sampling(
            stage.sampler, stage.steps, stage.guidance, self.negative_prompt, stage.noise_level
        )
        return replace(self, then=own.through(stage.then))

    def identity(self) -> dict[str, Any]:
        """Return the canonical form: later fields only where they differ from their defaults."""
        later = {"noise_level": 0, "then": None}
        held = {name: value for name, value in vars(self).items()
                if name not in later or value != later[name]}  # fmt: skip
        return held | ({"then": self.then.identity()} if self.then else {})

    @property
    def all_steps(self) -> int:
        """Sampling steps of an image, through all stages."""
        return self.steps + (self.then.all_steps if self.then else 0)


def scale_of(base: Base, sampling: Sampling) -> int:
    """Return by how much the stages after the first enlarge the sides of an image."""
    second = base.super_resolution
    if second is None or sampling.then is None:
        return 1
    return second.scale * scale_of(second, sampling.then)


def batch_size(backbone: Backbone, size: tuple[int, int] | None = None) -> int:
    """Return how many images fit on a device; it depends only on their size."""
    _, height, width = backbone.latent_shape(size)
    return max(1, _LATENTS_PER_BATCH // (height * width))


def generate(
    backbone: Backbone,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling,
    on_step: OnStep | None = None,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Sample one image per prompt and seed, with the present weights, through all stages.

    See `sample`; `size` is that of the first stage.
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds")
    condition = encode(backbone, prompts, sampling)
    images = sample(backbone, condition, seeds, sampling, on_step, size)
    return finish(backbone, prompts, images, seeds, sampling, on_step)


def finish(
    backbone: Backbone,
    prompts: Sequence[str],
    images_NHWC: np.ndarray,
    seeds: Sequence[int],
    sampling: Sampling,
    on_step: OnStep | None = None,
) -> np.ndarray:
    """Pass images of a stage through the stages after it that are loaded; see `enlarge`.

    Each image starts from its own seed in every stage.
    """
    following = backbone.super_resolution
    if sampling.then is None or following is None:
        return images_NHWC
    larger_NHWC = enlarge(following, prompts, images_NHWC, seeds, sampling.then, on_step)
    return finish(following, prompts, larger_NHWC, seeds, sampling.then, on_step)


def generate_in_batches(
    backbone: Backbone,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling,
    on_step: OnStep | None = None,
) -> np.ndarray:
    """Sample as `generate` does, in batches that fit on a device.

    The batches depend only on the resolution, so that they are the same everywhere.
    """
    return np.concatenate([
        generate(backbone, prompts[part], seeds[part], sampling, on_step)
        for part in _parts(len(prompts), batch_size(backbone))
    ])  # fmt: skip


def _parts(num: int, size: int) -> list[slice]:
    """Divide `num` images into batches of `size`; the last may be smaller."""
    return [slice(start, start + size) for start in range(0, num, size)]


def encode(backbone: Backbone, prompts: Sequence[str], sampling: Sampling) -> Condition:
    """Encode N prompts with the present text encoders, as `sample` takes them.

    Returns:
        N rows; if the guidance needs a negative prompt, another N rows of it follow.
    """
    num, base, scale = len(prompts), backbone.base, sampling.guidance
    if not base.family.needs_negative(scale):
        tensors = base.family.with_guidance(backbone.condition(prompts).tensors, scale)
        return Condition(dict(tensors))
    negative = sampling.negative_prompt
    found = backbone.condition([*prompts, negative or base.family.no_prompt])
    without = found[num:].tensors
    if not negative:
        without = base.family.without_prompt(without, base.layout)
    return Condition.cat([found[:num], Condition(dict(without)).repeat(num)])


def enlarge(
    backbone: Backbone,
    prompts: Sequence[str],
    images_NHWC: np.ndarray,
    seeds: Sequence[int],
    sampling: Sampling,
    on_step: OnStep | None = None,
) -> np.ndarray:
    """Sample one image per low-resolution image, prompt and seed, by a super-resolution network.

    In batches that fit on a device; they depend only on the size.

    Args:
        backbone: the network, with its present weights.
        prompts: N prompts.
        images_NHWC: N uint8 images.
        seeds: N seeds.
        sampling: how it samples, and the noise level.
        on_step: as in `sample`.
    """
    height, width = (backbone.base.scale * side for side in images_NHWC.shape[1:3])
    size = width, height

    def of(part: slice) -> np.ndarray:
        condition = encode(backbone, prompts[part], sampling)
        low = backbone.low_images(images_NHWC[part], size).to(backbone.device)
        low = low.repeat(len(condition) // len(low), 1, 1, 1)
        return sample(
            backbone, condition.with_tensor(LOW, low), seeds[part], sampling, on_step, size
        )

    return np.concatenate([of(part) for part in _parts(len(prompts), batch_size(backbone, size))])


@torch.no_grad()
def sample(
    backbone: Backbone,
    condition: Condition,
    seeds: Sequence[int],
    sampling: Sampling,
    on_step: OnStep | None = None,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Sample one image per seed.

    Args:
        backbone: the loaded model, with its present weights.
        condition: of N prompts, from `encode`.
        seeds: N seeds, each of [0, 2**63).
        sampling: sampler, steps and guidance, shared by the N images.
        on_step: called after every step with its index and the present estimate of the clean
            latents (N, C, H, W); an exception from it ends the sampling (cancellation).
        size: (width, height) in pixels; None: the backbone's resolution, a square.

    Returns:
        uint8 array (N, H, W, 3).
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    scheduler = backbone.scheduler(sampling.sampler, sampling.steps, size)
    noise, condition = _drawn(backbone, condition, generators, sampling.noise_level, size)
    latents = noise * float(scheduler.init_noise_sigma)
    denoise = _guided(backbone, condition, len(seeds), sampling.guidance)
    # The scheduler's arithmetic is cheap, and on the CPU it gives the same result on every device.
    for index, timestep in enumerate(scheduler.timesteps):
        prediction = denoise(scheduler.scale_model_input(latents, timestep), timestep)
        result = scheduler.step(prediction, timestep, latents, generator=generators)
        latents = result.prev_sample
        if on_step is not None:
            on_step(index, result.get("pred_original_sample", latents))
    return backbone.decode(latents)


def _drawn(
    backbone: Backbone,
    condition: Condition,
    generators: Sequence[torch.Generator],
    level: int,
    size: tuple[int, int] | None,
) -> tuple[Tensor, Condition]:
    """Draw the noise of the latents and that of the low images, if there are any.

    Returns:
        The noise, and the condition with noised low images.
    """

    def draw(shape: Sequence[int]) -> Tensor:
        return torch.stack([torch.randn(*shape, generator=one) for one in generators])

    shape, family = backbone.latent_shape(size), backbone.base.family
    if not isinstance(family, SuperResolution):
        return draw(shape), condition
    shapes = {"latents": shape, LOW: condition.tensors[LOW].shape[1:]}
    names = sorted(shapes, key=lambda name: (name == LOW) != family.draws_low_first)
    drawn = {name: draw(shapes[name]) for name in names}
    noise = drawn[LOW].repeat(len(condition) // len(generators), 1, 1, 1)
    return drawn["latents"], backbone.noising(level).noised(condition, noise)


def _guided(
    backbone: Backbone, condition: Condition, num: int, scale: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function that denoises with the family's guidance, in one forward pass per step."""
    if len(condition) == num:
        return lambda latents, t: backbone.denoise(latents, t.repeat(num), condition)

    def guided(latents: Tensor, timestep: Tensor) -> Tensor:
        both = backbone.denoise(torch.cat([latents] * 2), timestep.repeat(2 * num), condition)
        positive, negative = both.chunk(2)
        return backbone.base.family.guide(positive, negative, scale)

    return guided
