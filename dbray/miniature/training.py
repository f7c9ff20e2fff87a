"""The common part of all training stages: peers, progress by time, checkpoints, averages.

Owns the mechanics of a run that may be stopped, paused or killed at any moment. Does not know
pixels or captions.
"""

from __future__ import annotations

import datetime
import logging
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

logger = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 120.0
LOG_SECONDS = 20.0
FINISHED = 0.98
# Peers take this many steps on their own, then average parameters (local SGD): on a busy machine
# one of them always lags, and with a meeting at every step each would wait for the others.
MEET_EVERY = 8


@dataclass(frozen=True, slots=True)
class Peers:
    """The processes of one run, one thread each: more threads per process spin and starve."""

    rank: int
    count: int

    @classmethod
    def meet(cls, rank: int, count: int, meeting_file: Path) -> Peers:
        """Join the others through a file; a peer may be paused for hours."""
        torch.set_num_threads(1)
        if count > 1:
            dist.init_process_group(
                "gloo",
                init_method=f"file://{meeting_file}",
                rank=rank,
                world_size=count,
                timeout=datetime.timedelta(days=2),
            )
        return cls(rank, count)

    @property
    def leads(self) -> bool:
        """Whether this process writes files and makes decisions."""
        return self.rank == 0

    def average_parameters(self, parameters: list[torch.nn.Parameter]) -> None:
        """Replace parameters by their mean over peers, in one message."""
        if self.count == 1:
            return
        with torch.no_grad():
            flat = torch.cat([parameter.reshape(-1) for parameter in parameters])
            dist.all_reduce(flat)
            flat /= self.count
            pieces = flat.split([parameter.numel() for parameter in parameters])
            for parameter, piece in zip(parameters, pieces, strict=True):
                parameter.copy_(piece.view_as(parameter))

    def agree(self, value: float) -> float:
        """Return the leader's value."""
        if self.count == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(shared, src=0)
        return float(shared)


@dataclass(slots=True)
class Progress:
    """Progress of a stage, from 0 to 1, which reaches 1 at its deadline.

    The speed of a shared machine is unpredictable, so progress is measured in time, not in steps:
    the learning rate is fully decayed at the deadline.
    """

    fraction: float = 0.0
    step: int = 0
    images: int = 0
    _last: float = field(default_factory=time.time)

    def advance(self, deadline: float, images: int) -> None:
        """Count one step of `images`, ending at `deadline` in seconds since the epoch."""
        now = time.time()
        elapsed, self._last = max(now - self._last, 1e-6), now
        remaining = max(deadline - now, 0.0)
        self.fraction = 1.0 - (1.0 - self.fraction) * remaining / (remaining + elapsed)
        self.step += 1
        self.images += images

    def learning_rate(self, peak: float, warmup_steps: int = 300) -> float:
        """Warm up over steps, then decay along a cosine to 1 % of `peak`."""
        warm = min(1.0, (self.step + 1) / warmup_steps)
        cosine = 0.5 * (1.0 + math.cos(math.pi * min(self.fraction, 1.0)))
        return peak * warm * (0.01 + 0.99 * cosine)

    def state(self) -> dict[str, float]:
        """Return what a checkpoint keeps."""
        return {"fraction": self.fraction, "step": self.step, "images": self.images}


class Average:
    """An exponential moving average of parameters, over a short window at first."""

    def __init__(self, parameters: list[torch.nn.Parameter], decay: float = 0.995) -> None:
        self.decay = decay
        self.values = [parameter.detach().clone() for parameter in parameters]

    def update(self, parameters: list[torch.nn.Parameter], step: int) -> None:
        """Move towards the current parameters."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, [p.detach() for p in parameters], 1.0 - decay)

    def copy_to(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Write the averages into a model."""
        for parameter, value in zip(parameters, self.values, strict=True):
            parameter.data.copy_(value)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint under another name, then rename it: a kill never leaves a part of one."""
    partial = path.with_suffix(".part")
    torch.save(state, partial)
    partial.replace(path)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Return a checkpoint, or None; tensors and plain values only."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


class Log:
    """Progress lines with speed and remaining time."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._since = time.time()
        self._images = 0
        self._sums: dict[str, float] = {}
        self._count = 0

    def add(self, images: int, **values: float) -> None:
        """Count a step's losses."""
        self._images += images
        self._count += 1
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def due(self) -> bool:
        """Whether it is time for a line."""
        return time.time() - self._since >= LOG_SECONDS

    def write(self, progress: Progress, deadline: float) -> None:
        """Log one line and start over."""
        seconds = time.time() - self._since
        means = " ".join(f"{k}={v / max(self._count, 1):.4f}" for k, v in self._sums.items())
        logger.info(
            "%s step=%d images=%d images_per_second=%.1f progress=%.3f eta_minutes=%.1f %s",
            self.stage,
            progress.step,
            progress.images,
            self._images / seconds,
            progress.fraction,
            max(deadline - time.time(), 0.0) / 60,
            means,
        )
        self._since, self._images, self._sums, self._count = time.time(), 0, {}, 0


@dataclass(frozen=True, slots=True)
class Run:
    """The folder, deadline and peers of a stage."""

    folder: Path
    deadline: float
    peers: Peers
    device: torch.device
    batch_size: int
    seed: int = 0


class Trainer:
    """Takes optimiser steps on given parameters until the deadline."""

    def __init__(
        self,
        run: Run,
        stage: str,
        parameters: list[torch.nn.Parameter],
        optimiser: torch.optim.Optimizer,
        peak: float,
    ) -> None:
        self.run, self.stage, self.peak = run, stage, peak
        self.parameters, self.optimiser = parameters, optimiser
        self.progress, self.average = Progress(), Average(parameters)
        self.log = Log(stage)
        self.path = run.folder / f"{stage}.pt"
        self._saved = time.time()

    @classmethod
    def begin(
        cls,
        run: Run,
        stage: str,
        parameters: list[torch.nn.Parameter],
        peak: float,
        weight_decay: float = 0.0,
    ) -> Trainer:
        """Make the trainer of a short stage with AdamW, and continue from its checkpoint."""
        optimiser = torch.optim.AdamW(
            parameters, lr=0.0, betas=(0.9, 0.98), weight_decay=weight_decay, fused=True
        )
        trainer = cls(run, stage, parameters, optimiser, peak)
        trainer.average.decay = 0.98
        trainer.restore()
        return trainer

    def restore(self) -> None:
        """Continue from the checkpoint if there is one."""
        state = load_checkpoint(self.path)
        if state is None:
            return
        for parameter, value in zip(self.parameters, state["parameters"], strict=True):
            parameter.data.copy_(value)
        self.average.values = [value.to(self.run.device) for value in state["average"]]
        self.optimiser.load_state_dict(state["optimiser"])
        self.progress = Progress(**state["progress"])
        if self.progress.fraction > FINISHED:
            # a finished run that is continued decays once more, from half the peak
            self.progress.fraction = 0.5

    def save(self) -> None:
        """Write the checkpoint."""
        state: dict[str, Any] = {
            "parameters": [parameter.detach() for parameter in self.parameters],
            "average": self.average.values,
            "optimiser": self.optimiser.state_dict(),
            "progress": self.progress.state(),
        }
        save_checkpoint(self.path, state)
        self._saved = time.time()

    def generator(self) -> np.random.Generator:
        """Return this step's random generator, different for every peer."""
        return np.random.default_rng([self.run.seed, self.run.peers.rank, self.progress.step])

    def going(self) -> bool:
        """Whether the deadline is in the future, by the leader's clock; peers check at meetings."""
        if self.progress.step % MEET_EVERY:
            return True
        return self.run.peers.agree(time.time()) < self.run.deadline

    def step(self, loss: torch.Tensor, num_images: int, **values: float) -> None:
        """Backpropagate and update; from time to time meet the peers, average, log, checkpoint."""
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        peers = self.run.peers
        self.progress.advance(self.run.deadline, num_images * peers.count)
        for group in self.optimiser.param_groups:
            group["lr"] = self.progress.learning_rate(self.peak)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.log.add(num_images * peers.count, loss=float(loss.detach()), **values)
        if self.progress.step % MEET_EVERY == 0:
            self._meet()

    def _meet(self) -> None:
        peers = self.run.peers
        peers.average_parameters(self.parameters)
        self.progress.fraction = peers.agree(self.progress.fraction)
        if not peers.leads:
            return
        self.average.update(self.parameters, self.progress.step // MEET_EVERY)
        if self.log.due():
            self.log.write(self.progress, self.run.deadline)
        if time.time() - self._saved > CHECKPOINT_SECONDS:
            self.save()
