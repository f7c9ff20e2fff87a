"""What a lane reports of its life to the queue, and how long its phases take."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from dbray import metrics

_BEAT_SECONDS = 1.0


@dataclass
class Clock:
    """What one attempt at a subject took: seconds by phase, and optimiser steps."""

    seconds: dict[str, float] = field(default_factory=dict)
    steps: int = 0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a block as a part of a phase."""
        start = time.monotonic()
        yield
        elapsed = time.monotonic() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + elapsed
        metrics.phase_seconds().observe(elapsed, {"phase": name})


class Beat:
    """Reports to the queue now and then that the lane is alive, without waiting for an answer.

    Called step by step, so that a lane whose device hangs falls silent.
    """

    def __init__(self, queue: Any, lane: str, subject_id: str, leads: bool, step: int) -> None:
        self._queue, self._lane, self._subject_id, self._leads = queue, lane, subject_id, leads
        self._last_time, self._last_step = time.monotonic(), step

    def __call__(self, step: int) -> None:
        """Report where the last report was long enough ago."""
        if time.monotonic() - self._last_time > _BEAT_SECONDS:
            self.now(step)

    def now(self, step: int) -> None:
        """Report, however recent the last report is."""
        if self._leads:
            if step > self._last_step:  # a counter does not accept 0
                metrics.train_steps().inc(step - self._last_step)
            self._last_time, self._last_step = time.monotonic(), step
            self._queue.beat.remote(self._lane, self._subject_id, step)

    @contextmanager
    def meanwhile(self) -> Iterator[None]:
        """Go on reporting from another thread while this one waits for storage."""
        over = threading.Event()

        def report() -> None:
            while not over.wait(_BEAT_SECONDS):
                self.now(self._last_step)

        thread = threading.Thread(target=report, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
