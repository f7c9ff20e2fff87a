"""The losses of the cascade: noise, and its variance.

Owns the mathematics of a network that predicts both. Suffixes: B rows, C channels, H height, W
width, T timesteps. Source: Nichol and Dhariwal 2021 (arXiv 2102.09672), equations 15 and 16: the
bound trains the variance alone, and the squared error the noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

VARIANCE_WEIGHT = 0.1


@dataclass(frozen=True, slots=True)
class Variances:
    """Of every timestep: the logarithms of both ends of the range, and how noise moves the mean."""

    least_T: Tensor
    most_T: Tensor
    mean_of_noise_T: Tensor

    @classmethod
    def of(cls, scheduler: Any, device: torch.device) -> Variances:
        """Compute them in float64 for a scheduler with a learned range."""
        betas = scheduler.betas.double()
        left = scheduler.alphas_cumprod.double()
        before = torch.cat([torch.ones(1, dtype=torch.float64), left[:-1]])
        posterior = (betas * (1 - before) / (1 - left)).clamp(min=1e-20)
        moves = betas / ((1 - betas).sqrt() * (1 - left).sqrt())
        return cls(*(x.float().to(device) for x in (posterior.log(), betas.log(), moves)))

    def bound(self, logits_BCHW: Tensor, error_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """Return the divergence of each row in nats per value, of which only logits get gradients.

        `logits` in [-1, 1] are the share of the range, and `error` is that of the predicted noise.
        The first timestep, whose true variance is none, is without it.
        """
        at = timesteps_B.clamp(min=1)
        least, most, moves = (
            table[at].view(-1, 1, 1, 1)
            for table in (self.least_T, self.most_T, self.mean_of_noise_T)
        )
        share = (logits_BCHW + 1) / 2
        predicted = share * most + (1 - share) * least
        squares = (moves * error_BCHW.detach()).square()
        nats = 0.5 * (
            predicted - least - 1 + (least - predicted).exp() + squares * (-predicted).exp()
        )
        return nats.mean(dim=(1, 2, 3)) * (timesteps_B > 0)


def spread_timesteps(rng: np.random.Generator, count: int, num_timesteps: int) -> np.ndarray:
    """Draw timesteps evenly: one in each of `count` equal parts of the range, shuffled."""
    parts = (np.arange(count) + rng.random(count)) / count
    return (rng.permutation(parts) * num_timesteps).astype(np.int64)
