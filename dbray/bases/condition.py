"""The inputs of a denoiser besides noisy latents and timesteps: rows of named tensors.

Owns how rows are taken, stacked, repeated, moved and counted. Does not know what the tensors mean:
text embeddings or token ids, pooled vectors, masks, positions and sizes are all in a Condition, and
only the family that made it interprets them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """N rows: every tensor has the shape (N, ...)."""

    tensors: dict[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, rows: int | slice) -> Condition:
        """Return one row, without the first dimension, or several."""
        return Condition({name: tensor[rows] for name, tensor in self.tensors.items()})

    def with_tensor(self, name: str, tensor: Tensor) -> Condition:
        """Return the rows with one more tensor, or with another in the place of one."""
        return Condition({**self.tensors, name: tensor})

    @staticmethod
    def stack(rows: Sequence[Condition]) -> Condition:
        """Combine single rows, as `condition[0]` returns them."""
        import torch

        names = rows[0].tensors
        return Condition({name: torch.stack([row.tensors[name] for row in rows]) for name in names})

    @staticmethod
    def cat(parts: Sequence[Condition]) -> Condition:
        """Concatenate the rows of several conditions."""
        import torch

        names = parts[0].tensors
        return Condition(
            {name: torch.cat([part.tensors[name] for part in parts]) for name in names}
        )

    def repeat(self, times: int) -> Condition:
        """Repeat all rows."""
        return Condition.cat([self] * times)

    def to(self, device: torch.device) -> Condition:
        """Copy to a device."""
        return Condition({name: tensor.to(device) for name, tensor in self.tensors.items()})

    @property
    def size_bytes(self) -> int:
        """Memory in use."""
        return sum(tensor.nbytes for tensor in self.tensors.values())
