"""The mathematics of training: seeds of random draws, and the prior-preservation loss.

Torch only; knows neither models, files nor processes. Every function works on rows, so that a batch
equals a loop over its rows. Shape suffixes: B rows, C channels, H height, W width.

Sources: Ruiz et al. 2022 (arXiv 2208.12242), equation 2; Barron 2019 (arXiv 1701.03077), equation
13: the smooth form of Huber's loss, as kohya's and diffusers' scripts have it.
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


def row_losses(
    prediction_BCHW: Tensor, target_BCHW: Tensor, huber_c: float | None = None
) -> Tensor:
    """Mean loss of the elements of each row, in float32, shape (B,).

    With e = prediction - target the loss of an element is e^2 or, with a constant c,
    2 c (sqrt(e^2 + c^2) - c): e^2 for |e| far below c, 2 c |e| far above.
    """
    error_BCHW = prediction_BCHW.float() - target_BCHW.float()
    loss_BCHW = error_BCHW.square()
    if huber_c is not None:
        # The same without the difference, which loses the digits of small errors.
        root_BCHW = (loss_BCHW + huber_c**2).sqrt()
        loss_BCHW = 2 * huber_c * loss_BCHW / (root_BCHW + huber_c)
    return loss_BCHW.mean(dim=(1, 2, 3))


def offset_noise(noise_CHW: Tensor, offset: float, generator: torch.Generator) -> Tensor:
    """Add noise to the mean of each channel: noise + offset z, with z normal of shape (C, 1, 1).

    Without it, the noisiest step of a schedule that ends before pure noise shows the mean of each
    channel, which is never learnt. Source: Guttenberg 2023, "Diffusion with Offset Noise".
    """
    if not offset:
        return noise_CHW
    return noise_CHW + offset * torch.randn(len(noise_CHW), 1, 1, generator=generator)


def prior_preservation_loss(losses_B: Tensor, weights_B: Tensor) -> Tensor:
    """Equation 2 of the paper: the weighted sum of the rows' losses, a 0-d tensor."""
    return (losses_B * weights_B).sum()
