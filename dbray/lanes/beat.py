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
        self.add(name, time.monotonic() - start)

    def add(self, name: str, seconds: float) -> None:
        """Add seconds to a phase."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def observe(self) -> None:
        """Pass the phases on to the metrics, at the end of the attempt."""
        for name, seconds in self.seconds.items():
            metrics.phase_seconds().observe(seconds, {"phase": name})


class Beat:
    """Reports to the queue regularly that the lane is alive, without waiting for an answer.

    It is called at each step, so a lane whose device hangs stops reporting.
    """

    def __init__(self, queue: Any, lane: str, leads: bool) -> None:
        self._queue, self._lane, self._leads = queue, lane, leads
        self._last_time, self._new_steps = time.monotonic(), 0
        self._steps: dict[str, int] = {}

    def begin(self, subject_id: str, step: int = 0) -> None:
        """Report this subject too from now on, at this step."""
        self._steps[subject_id] = step

    def end(self, subject_id: str) -> None:
        """No longer report a subject, which has ended."""
        self._steps.pop(subject_id, None)

    def __call__(self, subject_id: str, step: int) -> None:
        """Note a subject's step; report, unless the last report is recent."""
        self._new_steps += step - self._steps[subject_id]
        self._steps[subject_id] = step
        self.touch()

    def touch(self) -> None:
        """Report, unless the last report is recent."""
        if time.monotonic() - self._last_time > _BEAT_SECONDS:
            self.now()

    def now(self) -> None:
        """Report now."""
        if not self._leads:
            return
        if self._new_steps > 0:  # a counter does not accept 0
            metrics.train_steps().inc(self._new_steps)
        self._last_time, self._new_steps = time.monotonic(), 0
        self._queue.beat.remote(self._lane, dict(self._steps))

    def meanwhile(self) -> AbstractContextManager[None]:
        """Keep reporting from another thread while this one waits for storage."""
        return repeating(self.now, _BEAT_SECONDS)
