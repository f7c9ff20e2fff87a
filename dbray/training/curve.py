"""The loss curve of one subject, read from the device so that no step waits for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist

from dbray.errors import Diverged
from dbray.training.batches import Batch, send

MAX_LOSS_POINTS = 200
"""Points that a published loss curve holds at most."""


@dataclass(frozen=True)
class LossPoint:
    """Mean losses of the rows over the steps since the point before; `step` counts from 1.

    Where a checkpoint between two points was continued, over the steps since the checkpoint. `loss`
    is instance_loss + lambda * prior_loss, without the weights of timesteps.
    """

    step: int
    loss: float
    instance_loss: float
    prior_loss: float


class Reading:
    """A loss point on its way from the device."""

    def __init__(self, step: int, sums: Tensor, prior_weight: float) -> None:
        self._step, self._prior_weight = step, prior_weight
        self._sums = sums.to("cpu", non_blocking=True)
        self._arrival = None
        if sums.device.type != "cpu":
            self._arrival = torch.Event(sums.device)
            self._arrival.record()

    def point(self) -> LossPoint:
        """Wait for it. Raises Diverged where it is not finite."""
        if self._arrival is not None:
            self._arrival.synchronize()
        instance, prior = (self._sums[:2] / self._sums[2:].clamp(min=1)).tolist()
        loss = instance + self._prior_weight * prior
        if not math.isfinite(loss):
            raise Diverged(f"the loss is {loss} at step {self._step}; lower learning_rate, or use "
                           "precision fp32")  # fmt: skip
        return LossPoint(self._step, loss, instance, prior)


class Curve:
    """The loss curve as it grows. A point is read when the next is there: no step waits for it."""

    def __init__(self, points: Sequence[LossPoint]) -> None:
        self._points = list(points)
        self._coming: Reading | None = None

    def add(self, reading: Reading) -> None:
        """Take a point that is on its way; wait for the one before."""
        self._settle()
        self._coming = reading

    def points(self) -> tuple[LossPoint, ...]:
        """Return all points so far. Waits for the last. Raises Diverged."""
        self._settle()
        return tuple(self._points)

    def _settle(self) -> None:
        if self._coming is not None:
            self._points.append(self._coming.point())
        self._coming = None


class LossSums:
    """Sums of the rows' losses since the last point."""

    def __init__(self, prior_weight: float) -> None:
        self._prior_weight = prior_weight
        self._sums: Tensor | None = None
        self._rows = torch.zeros(2)

    def add(self, losses_B: Tensor, batch: Batch) -> None:
        """Add the losses of a batch's rows."""
        is_prior = batch.is_prior_B
        kinds = torch.stack([(losses_B * ~is_prior).sum(), (losses_B * is_prior).sum()])
        self._sums = kinds if self._sums is None else self._sums + kinds
        self._rows += torch.tensor([len(losses_B) - batch.num_prior, batch.num_prior])

    def point(self, step: int, world_size: int) -> Reading:
        """Mean of both kinds over all ranks; starts anew."""
        assert self._sums is not None
        both = torch.cat([self._sums, send(self._rows, self._sums.device)])
        if world_size > 1:
            dist.all_reduce(both)
        self._sums, self._rows = None, torch.zeros(2)
        return Reading(step, both, self._prior_weight)
