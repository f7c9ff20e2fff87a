"""Errors that are remembered for a short time, so that a repeated request costs nothing."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

Clock = Callable[[], float]

_MAX_FAILURES = 10_000


class Failures:
    """Errors by key, each remembered for a short time."""

    def __init__(self, seconds: float, clock: Clock = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._errors: OrderedDict[Hashable, tuple[float, Exception]] = OrderedDict()
        self._lock = threading.Lock()

    def remember(self, key: Hashable, error: Exception) -> None:
        """Remember an error; beyond a limit the oldest is dropped."""
        with self._lock:
            self._errors.pop(key, None)
            self._errors[key] = (self._clock() + self._seconds, error.with_traceback(None))
            while len(self._errors) > _MAX_FAILURES:
                self._errors.popitem(last=False)

    def get(self, key: Hashable) -> Exception | None:
        """Return the error of a key, if it is still remembered."""
        with self._lock:
            expires, error = self._errors.get(key, (0.0, None))
            if error is not None and self._clock() >= expires:
                del self._errors[key]
                return None
            return error
