"""Schedules: how latents are noised in training, and the target of the denoiser.

A base's schedule draws its own timesteps, adds noise, and returns target and weights, so that the
loop is the same for every kind of diffusion. Every function works on rows, so that a batch equals
a loop over its rows. Shape suffixes: B rows, C channels, H height, W width, T timesteps.

Sources: Ho et al. 2020 (arXiv 2006.11239), equations 4 and 14; Salimans and Ho 2022 (arXiv
2202.00512), v-prediction; Hang et al. 2023 (arXiv 2303.09556), min-SNR.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dbray.spec.recipe import Prediction, Recipe


class Schedule(Protocol):
    """The interface of a base's noise for the training loop."""

    @property
    def device(self) -> torch.device:
        """The device of its tensors."""
        ...

    def to(self, device: torch.device) -> Schedule:
        """Copy to a device."""
        ...

    def draw(self, generator: torch.Generator, recipe: Recipe) -> Tensor:
        """Draw the timestep of one row, a 0-d tensor on the CPU."""
        ...

    def add_noise(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """Add noise to clean latents at their timesteps."""
        ...

    def target(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """Return the target of the denoiser."""
        ...

    def weights(self, timesteps_B: Tensor, recipe: Recipe) -> Tensor | None:
        """Return the recipe's loss weight of each row; None: all are 1."""
        ...


@dataclass(frozen=True)
class NoiseSchedule:
    """T discrete timesteps: the signal that is left at each, and the prediction type."""

    alphas_cumprod_T: Tensor
    prediction: Prediction

    @property
    def num_timesteps(self) -> int:
        """Number of timesteps T; timesteps are in [0, T)."""
        return len(self.alphas_cumprod_T)

    @property
    def device(self) -> torch.device:
        """See Schedule."""
        return self.alphas_cumprod_T.device

    def to(self, device: torch.device) -> NoiseSchedule:
        """See Schedule."""
        return NoiseSchedule(self.alphas_cumprod_T.to(device), self.prediction)

    def draw(self, generator: torch.Generator, recipe: Recipe) -> Tensor:
        """Draw a timestep uniformly, an int64."""
        return torch.randint(self.num_timesteps, (), generator=generator)

    def _signal_and_noise(self, timesteps_B: Tensor) -> tuple[Tensor, Tensor]:
        alphas_B111 = self.alphas_cumprod_T[timesteps_B].view(-1, 1, 1, 1)
        return alphas_B111.sqrt(), (1 - alphas_B111).sqrt()

    def add_noise(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """Add noise to clean latents at their timesteps (Ho et al., equation 4)."""
        signal, sigma = self._signal_and_noise(timesteps_B)
        return signal * latents_BCHW + sigma * noise_BCHW

    def target(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """Return the noise, or v = signal * noise - sigma * latents."""
        if self.prediction == "epsilon":
            return noise_BCHW
        signal, sigma = self._signal_and_noise(timesteps_B)
        return signal * noise_BCHW - sigma * latents_BCHW

    def weights(self, timesteps_B: Tensor, recipe: Recipe) -> Tensor | None:
        """Return min-SNR weights if the recipe uses them."""
        if recipe.min_snr_gamma is None:
            return None
        return self.min_snr_weights(timesteps_B, recipe.min_snr_gamma)

    def min_snr_weights(self, timesteps_B: Tensor, gamma: float) -> Tensor:
        """Min-SNR weight of each row; finite also at zero terminal SNR.

        epsilon: min(snr, gamma) / snr, whose limit at snr = 0 is 1. v: min(snr, gamma) / (snr + 1).
        """
        alphas_B = self.alphas_cumprod_T[timesteps_B]
        snr_B = alphas_B / (1 - alphas_B)
        if self.prediction == "epsilon":
            return torch.where(snr_B <= gamma, torch.ones_like(snr_B), gamma / snr_B)
        return snr_B.clamp(max=gamma) / (snr_B + 1)
