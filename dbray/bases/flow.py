"""Flow matching: straight paths from latents to noise, timesteps for training, and sampling.

Owns the noise level sigma: 0 is the image, 1 is noise, and a timestep is 1000 sigma in every
family. A base's family defines its table, density and weights.
Shape suffixes: B rows, C channels, H height, W width, T levels.

Sources: Lipman et al. 2022 (arXiv 2210.02747); Esser et al. 2024 (arXiv 2403.03206), densities
and weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor

from dbray.spec.sections import Recipe

TIMESTEPS_PER_SIGMA = 1000

_CPU = torch.device("cpu")

Density = Literal["uniform", "logit_normal"]
"""Distribution of training timesteps: uniform, or more in the middle."""


@dataclass(frozen=True)
class FlowSchedule:
    """T noise levels from noise to image, drawn by a density; implements Schedule.

    The timesteps stay on the CPU, where they are drawn; `device` is where rows are computed.
    """

    timesteps_T: Tensor
    density: Density = "uniform"
    weight_power: int = 0
    """Rows are weighted by sigma to this power."""
    device: torch.device = _CPU

    @classmethod
    def of(
        cls, config: Mapping[str, Any], density: Density = "uniform", weight_power: int = 0
    ) -> FlowSchedule:
        """Make the schedule of a base; its table includes the shift, unless that is dynamic."""
        scheduler: Any = FlowMatchEulerDiscreteScheduler.from_config(dict(config))
        return cls(scheduler.timesteps, density, weight_power)

    def to(self, device: torch.device) -> FlowSchedule:
        """See Schedule."""
        return replace(self, device=device)

    def draw(self, generator: torch.Generator) -> Tensor:
        """Draw a timestep, a float32; the first of the table is the noisiest."""
        if self.density == "uniform":
            position = torch.rand((), generator=generator)
        else:
            position = torch.randn((), generator=generator).sigmoid()
        last = len(self.timesteps_T) - 1
        return self.timesteps_T[min(int(position * len(self.timesteps_T)), last)]

    def add_noise(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """Move from the latents towards the noise."""
        sigmas_B111 = _sigmas(timesteps_B).view(-1, 1, 1, 1)
        return (1 - sigmas_B111) * latents_BCHW + sigmas_B111 * noise_BCHW

    def target(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """Return the direction of the path, which is the same at every timestep."""
        return noise_BCHW - latents_BCHW

    def weights(self, timesteps_B: Tensor, recipe: Recipe) -> Tensor | None:
        """Return the family's own weights. Min-SNR is rejected before a job runs."""
        return _sigmas(timesteps_B) ** self.weight_power if self.weight_power else None


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
