"""Values of the cache that are in use, and keys that are being loaded.

Does not know what the values are; uses neither torch nor Ray.
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
    """The load of a key into the tiers, and its result.

    `verified` is set first: images made with the value may be sent. `landed`: the key is in the
    highest tier that has room. `error` may be set at any time, by a purge.
    """

    def __init__(self) -> None:
        self.verified = threading.Event()
        self.landed: Future[None] = Future()
        self.landed.set_running_or_notify_cancel()  # nobody who stops waiting may cancel it
        self.error: Exception | None = None
        self.source = ""

    def check(self) -> None:
        """Raise the error of the load, if there is one."""
        if self.error is not None:
            raise self.error.with_traceback(None)


@dataclass
class Hold:
    """A value in use. `source` is the tier that had it at the time of the request.

    A value from storage is given before it is verified, so that work can begin; it is in no tier
    until then. Nothing made with it may be sent before `settle` has returned.
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
        """Load the key into higher tiers in the background; called at the best moment for that.

        `release` calls it at the latest.
        """
        lift, self._lift = self._lift, None
        if lift is not None:
            lift()

    @property
    def is_settled(self) -> bool:
        """Whether the value is verified."""
        flight = self._flight
        return flight is None or (flight.verified.is_set() and flight.error is None)

    def settle(self) -> None:
        """Wait until the value is verified. Raises the error if it is not what was published."""
        if self._flight is not None:
            self._flight.verified.wait()
            self._flight.check()

    async def landed(self) -> None:
        """Wait until the key is in the highest tier that has room. Raises as `settle`."""
        if self._flight is not None:
            await asyncio.wrap_future(self._flight.landed)
            self._flight.check()

    def release(self) -> None:
        """Stop using it; a second call does nothing."""
        self.rise()
        with self._lock:
            pinned = None if self._released else self.tier
            self._released = True
        if pinned is not None:
            pinned.unpin(self.key)

    def keep(self, tier: Tier[Any]) -> None:
        """Take over a pin of the tier that now has the value; this hold may be released already."""
        with self._lock:
            if not self._released:
                self.tier = tier
                return
        tier.unpin(self.key)
