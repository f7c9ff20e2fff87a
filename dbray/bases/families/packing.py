"""Latents as tokens of transformers: patches of 2 x 2, and the position of each token.

Shape suffixes: B rows, C channels, H height, W width, L tokens, D values of a token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

PATCH = 2


def pack(latents_BCHW: Tensor) -> Tensor:
    """Make a token from each patch: row by row, and channel by channel within a token."""
    from torch.nn.functional import pixel_unshuffle

    return pixel_unshuffle(latents_BCHW, PATCH).flatten(2).transpose(1, 2)


def unpack(tokens_BLD: Tensor, height: int, width: int) -> Tensor:
    """Invert `pack`, to latents of this height and width."""
    from torch.nn.functional import pixel_shuffle

    patches = tokens_BLD.transpose(1, 2).unflatten(2, (height // PATCH, width // PATCH))
    return pixel_shuffle(patches, PATCH)


def positions(height: int, width: int, num_axes: int, like: Tensor) -> Tensor:
    """Return positions: axes 1 and 2 are row and column of each token, the others are 0."""
    import torch

    found = torch.zeros(height, width, num_axes, device=like.device, dtype=like.dtype)
    found[..., 1] += torch.arange(height, device=like.device)[:, None]
    found[..., 2] += torch.arange(width, device=like.device)[None]
    return found.flatten(0, 1)
