"""Flow matching: straight paths from latents to noise, timesteps for training, and sampling.

Owns the noise level sigma: 0 is the image, 1 is noise, and a timestep is 1000 sigma in every
family. A base's family defines its table, density and weights.
Shape suffixes: B rows, C channels, H height, W width, T levels.

Training draws sigma in three steps, with N the length of the table:
    u  uniform in [0, 1), or sigmoid(m + s z) with z normal (logit_normal)
    r  = 1 - floor(N u) / N
    sigma = shift r / (1 + (shift - 1) r)
It weights the squared error of a row by w(sigma): 1 (none), sigma^2 (image: the error of the image
that the prediction implies), or 2 / (pi (1 - 2 sigma + 2 sigma^2)) (cosmap).

Sources: Lipman et al. 2022 (arXiv 2210.02747); Esser et al. 2024 (arXiv 2403.03206), section 3.1
(densities and weights) and equation 23 (shift).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor

from dbray.spec.flow import Density, Weighting
from dbray.spec.recipe import Recipe

TIMESTEPS_PER_SIGMA = 1000

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class FlowSchedule:
    """T noise levels from noise to image, drawn by a density; implements Schedule.

    The timesteps stay on the CPU, where they are drawn; `device` is where rows are computed.
    """

    timesteps_T: Tensor
    density: Density = "uniform"
    weighting: Weighting = "none"
    device: torch.device = _CPU

    @classmethod
    def of(
        cls,
        config: Mapping[str, Any],
        density: Density = "uniform",
        weighting: Weighting = "none",
    ) -> FlowSchedule:
        """Make the schedule of a base; its table includes the shift, unless that is dynamic."""
        scheduler: Any = FlowMatchEulerDiscreteScheduler.from_config(dict(config))
        return cls(scheduler.timesteps, density, weighting)

    def to(self, device: torch.device) -> FlowSchedule:
        """See Schedule."""
        return replace(self, device=device)

    def draw(self, generator: torch.Generator, recipe: Recipe) -> Tensor:
        """Draw a timestep, a float32; the first of the table is the noisiest."""
        flow, num = recipe.flow, len(self.timesteps_T)
        if (flow.density or self.density) == "uniform":
            position = torch.rand((), generator=generator)
        else:
            mean, std = flow.logit_mean or 0.0, flow.logit_std or 1.0
            position = (mean + std * torch.randn((), generator=generator)).sigmoid()
        table_T = self.timesteps_T if flow.shift is None else _shifted(num, flow.shift)
        return table_T[min(int(position * num), num - 1)]

    def add_noise(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """Move from the latents towards the noise."""
        sigmas_B111 = _sigmas(timesteps_B).view(-1, 1, 1, 1)
        return (1 - sigmas_B111) * latents_BCHW + sigmas_B111 * noise_BCHW

    def target(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """Return the direction of the path, which is the same at every timestep."""
        return noise_BCHW - latents_BCHW

    def weights(self, timesteps_B: Tensor, recipe: Recipe) -> Tensor | None:
        """Return the recipe's weights, else the family's. Min-SNR is rejected before a job runs."""
        sigmas_B = _sigmas(timesteps_B)
        match recipe.flow.weighting or self.weighting:
            case "image":
                return sigmas_B**2
            case "cosmap":
                return 2 / (math.pi * (1 - 2 * sigmas_B + 2 * sigmas_B**2))
            case _:
                return None


@lru_cache
def _shifted(num: int, shift: float) -> Tensor:
    """Return the table of `num` timesteps with a shift."""
    levels_T = torch.linspace(1, 1 / num, num)
    return TIMESTEPS_PER_SIGMA * shift * levels_T / (1 + (shift - 1) * levels_T)


class FlowSampler:
    """diffusers' Euler sampler of flows, with the interface of its samplers of noise schedules."""

    init_noise_sigma = 1.0

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler

    @property
    def timesteps(self) -> Tensor:
        """The timestep of each step."""
        return self._scheduler.timesteps

    def scale_model_input(self, latents: Tensor, timestep: Tensor) -> Tensor:
        """Return the latents unchanged."""
        return latents

    def step(
        self, prediction: Tensor, timestep: Tensor, latents: Tensor, generator: object = None
    ) -> DDIMSchedulerOutput:
        """Go one step along the path; the generators are not needed."""
        clean = latents - _sigmas(timestep) * prediction
        following = self._scheduler.step(prediction, timestep, latents, return_dict=False)[0]
        return DDIMSchedulerOutput(prev_sample=following, pred_original_sample=clean)


def _sigmas(timesteps: Tensor) -> Tensor:
    return timesteps / TIMESTEPS_PER_SIGMA
