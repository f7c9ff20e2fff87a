"""Values of the cache in use, and keys on their way up.

Knows neither torch nor Ray nor what the values are.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from dbray.serving.replica.tiers import Tier


class Flight:
    """A key on its way up, and how that ended.

    `verified` is set first: what was made with the value may leave. `landed`: the key is as far up
    as there is room. `error` may be set at any time, by a purge.
    """

    def __init__(self) -> None:
        self.verified = threading.Event()
        self.landed: Future[None] = Future()
        self.landed.set_running_or_notify_cancel()  # one that stops waiting must not stop others
        self.error: Exception | None = None
        self.source = ""

    def check(self) -> None:
        """Raise what went wrong."""
        if self.error is not None:
            raise self.error.with_traceback(None)


@dataclass
class Hold:
    """A value in use. `source` is the tier that had it when it was asked for.

    A value fresh from storage is given before it is verified, so that work with it can begin; it
    is in no tier until then. Nothing made with it may leave before `settle` has returned.
    """

    key: str
    value: Any
    tier: Tier[Any] | None
    source: str
    load_seconds: float
    _flight: Flight | None = field(default=None, repr=False)
    _lift: Callable[[], object] | None = field(default=None, repr=False)
    _released: bool = field(default=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def rise(self) -> None:
        """Let the key be brought up in the background, when that disturbs least.

        `release` does it at the latest.
        """
        lift, self._lift = self._lift, None
        if lift is not None:
            lift()

    @property
    def is_settled(self) -> bool:
        """Whether the value is known to be what was published."""
        flight = self._flight
        return flight is None or (flight.verified.is_set() and flight.error is None)

    def settle(self) -> None:
        """Wait until the value is verified. Raises what was found wrong with it."""
        if self._flight is not None:
            self._flight.verified.wait()
            self._flight.check()

    async def landed(self) -> None:
        """Wait until the key is as far up as there is room. Raises like `settle`."""
        if self._flight is not None:
            await asyncio.wrap_future(self._flight.landed)
            self._flight.check()

    def release(self) -> None:
        """Give it back; twice is harmless."""
        self.rise()
        with self._lock:
            pinned = None if self._released else self.tier
            self._released = True
        if pinned is not None:
            pinned.unpin(self.key)

    def keep(self, tier: Tier[Any]) -> None:
        """Take over a pin of the tier that the value came into; it may be released already."""
        with self._lock:
            if not self._released:
                self.tier = tier
                return
        tier.unpin(self.key)
