"""The mathematics of training: seeds of random draws, and the prior-preservation loss.

Torch only; knows neither models, files nor processes. Every function works on rows, so that a batch
equals a loop over its rows. Shape suffixes: B rows, C channels, H height, W width.

Source: Ruiz et al. 2022 (arXiv 2208.12242), equation 2.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def seed_of(*parts: object) -> int:
    """Derive a 63-bit seed from what names a random draw, e.g. (seed, subject id, step, row).

    Hashing keeps the draws of neighbouring rows and steps independent of one another.
    """
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator_of(*parts: object) -> torch.Generator:
    """Make a CPU generator for what `parts` name; draws are the same on every device."""
    return torch.Generator().manual_seed(seed_of(*parts))


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
