"""Prompts + weights + seeds -> images: the one sampling loop, for class images, previews, serving.

Every image has its own generator, seeded on the CPU, so that it depends only on its prompt, seed
and Sampling, and, except for rounding, neither on the other images of the batch, the number of
workers nor the device. Does not know Ray or storage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dbray.bases import Backbone
from dbray.bases.condition import Condition
from dbray.spec.sections import Previews, Prior, Sampler

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

    @classmethod
    def of(cls, section: Prior | Previews, negative_prompt: str = "") -> Sampling:
        """Return what a section of a job says."""
        return cls(section.sampler, section.steps, section.guidance, negative_prompt)


def batch_size(backbone: Backbone) -> int:
    """Return how many images fit on a device; it depends only on their resolution."""
    _, height, width = backbone.latent_shape()
    return max(1, _LATENTS_PER_BATCH // (height * width))


def generate(
    backbone: Backbone,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling,
    on_step: OnStep | None = None,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Sample one image per prompt and seed, with the present weights: see `sample`."""
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds")
    condition = encode(backbone, prompts, sampling)
    return sample(backbone, condition, seeds, sampling, on_step, size)


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
    size = batch_size(backbone)
    batches = [
        generate(backbone, prompts[part], seeds[part], sampling, on_step)
        for part in (slice(start, start + size) for start in range(0, len(prompts), size))
    ]
    return np.concatenate(batches)


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
    shape = backbone.latent_shape(size)
    noise = [torch.randn(shape, generator=generator) for generator in generators]
    latents = torch.stack(noise) * float(scheduler.init_noise_sigma)
    denoise = _guided(backbone, condition, len(seeds), sampling.guidance)
    # The scheduler's arithmetic is cheap, and on the CPU it gives the same result on every device.
    for index, timestep in enumerate(scheduler.timesteps):
        prediction = denoise(scheduler.scale_model_input(latents, timestep), timestep)
        result = scheduler.step(prediction, timestep, latents, generator=generators)
        latents = result.prev_sample
        if on_step is not None:
            on_step(index, result.get("pred_original_sample", latents))
    return backbone.decode(latents)


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
