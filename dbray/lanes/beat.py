"""Signs of life that a lane sends to the queue, and the time that its phases take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from dbray import metrics
from dbray.repeating import repeating

_BEAT_SECONDS = 1.0


@dataclass
class Clock:
    """The cost of one attempt at a subject: seconds per phase, and optimiser steps."""

    seconds: dict[str, float] = field(default_factory=dict)
    steps: int = 0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of a block to a phase."""
        start = time.monotonic()
        yield
        elapsed = time.monotonic() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + elapsed
        metrics.phase_seconds().observe(elapsed, {"phase": name})


class Beat:
    """Reports to the queue regularly that the lane is alive, without waiting for an answer.

    It is called at each step, so a lane whose device hangs stops reporting.
    """

    def __init__(self, queue: Any, lane: str, subject_id: str, leads: bool, step: int) -> None:
        self._queue, self._lane, self._subject_id, self._leads = queue, lane, subject_id, leads
        self._last_time, self._last_step = time.monotonic(), step

    def __call__(self, step: int) -> None:
        """Report, unless the last report is recent."""
        if time.monotonic() - self._last_time > _BEAT_SECONDS:
            self.now(step)

    def now(self, step: int) -> None:
        """Report now."""
        if self._leads:
            if step > self._last_step:  # a counter does not accept 0
                metrics.train_steps().inc(step - self._last_step)
            self._last_time, self._last_step = time.monotonic(), step
            self._queue.beat.remote(self._lane, self._subject_id, step)

    def meanwhile(self) -> AbstractContextManager[None]:
        """Keep reporting from another thread while this one waits for storage."""
        return repeating(lambda: self.now(self._last_step), _BEAT_SECONDS)
