"""The mathematics of training: noising, targets, weights, and the prior-preservation loss.

Torch only; knows neither models, files nor processes. Every function works on rows, so that a batch
equals a loop over its rows. Shape suffixes: B rows, C channels, H height, W width, T timesteps.

Sources: Ho et al. 2020 (arXiv 2006.11239), equations 4 and 14; Salimans and Ho 2022 (arXiv
2202.00512), v-prediction; Hang et al. 2023 (arXiv 2303.09556), min-SNR; Ruiz et al. 2022 (arXiv
2208.12242), equation 2.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from dbray.spec.sections import Prediction


def seed_of(*parts: object) -> int:
    """Derive a 63-bit seed from what names a random draw, e.g. (seed, subject id, step, row).

    Hashing keeps the draws of neighbouring rows and steps independent of one another.
    """
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator_of(*parts: object) -> torch.Generator:
    """Make a CPU generator for what `parts` name; draws are the same on every device."""
    return torch.Generator().manual_seed(seed_of(*parts))


@dataclass(frozen=True)
class NoiseSchedule:
    """How much signal is left at each timestep, and what the base was trained to predict."""

    alphas_cumprod_T: Tensor
    prediction: Prediction

    @property
    def num_timesteps(self) -> int:
        """Number of timesteps T; timesteps lie in [0, T)."""
        return len(self.alphas_cumprod_T)

    def to(self, device: torch.device) -> NoiseSchedule:
        """Copy to a device."""
        return NoiseSchedule(self.alphas_cumprod_T.to(device), self.prediction)

    def _signal_and_noise(self, timesteps_B: Tensor) -> tuple[Tensor, Tensor]:
        alphas_B111 = self.alphas_cumprod_T[timesteps_B].view(-1, 1, 1, 1)
        return alphas_B111.sqrt(), (1 - alphas_B111).sqrt()

    def add_noise(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """Noise clean latents to their timesteps (Ho et al., equation 4)."""
        signal, sigma = self._signal_and_noise(timesteps_B)
        return signal * latents_BCHW + sigma * noise_BCHW

    def target(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """What the denoiser should answer: the noise, or v = signal * noise - sigma * latents."""
        if self.prediction == "epsilon":
            return noise_BCHW
        signal, sigma = self._signal_and_noise(timesteps_B)
        return signal * noise_BCHW - sigma * latents_BCHW

    def min_snr_weights(self, timesteps_B: Tensor, gamma: float) -> Tensor:
        """Min-SNR weight of each row; finite also at zero terminal SNR.

        epsilon: min(snr, gamma) / snr, whose limit at snr = 0 is 1. v: min(snr, gamma) / (snr + 1).
        """
        alphas_B = self.alphas_cumprod_T[timesteps_B]
        snr_B = alphas_B / (1 - alphas_B)
        if self.prediction == "epsilon":
            return torch.where(snr_B <= gamma, torch.ones_like(snr_B), gamma / snr_B)
        return snr_B.clamp(max=gamma) / (snr_B + 1)


def row_weights(is_prior_B: Tensor, prior_weight: float) -> Tensor:
    """Weight of each row in equation 2: 1 / #instance rows, or lambda / #prior rows.

    Weighting rows, rather than splitting the batch into halves, stays right for any number and
    order of rows, and on any share of them.
    """
    num_prior = is_prior_B.sum().clamp(min=1)
    num_instance = (~is_prior_B).sum().clamp(min=1)
    return torch.where(is_prior_B, prior_weight / num_prior, 1.0 / num_instance)


def row_losses(prediction_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """Mean squared error of each row, in float32, shape (B,)."""
    error_BCHW = prediction_BCHW.float() - target_BCHW.float()
    return error_BCHW.square().mean(dim=(1, 2, 3))


def prior_preservation_loss(losses_B: Tensor, weights_B: Tensor) -> Tensor:
    """Equation 2 of the paper: the weighted sum of the rows' losses, a 0-d tensor."""
    return (losses_B * weights_B).sum()
