"""Where a model's weights are: storage -> local disk -> RAM -> device, each within a byte budget.

Owns what is kept and what is evicted. Does not know what the values are; uses neither torch nor
Ray. The rules:

1. Load before evicting: a value is made and verified before others are evicted for it, so that an
   unknown or corrupt model evicts nothing.
2. A value in use is pinned, and never evicted. If pins leave no room, a new value is used but not
   kept. `loads` limits how much is in use at once.
3. One load per key, for any number of requests; different keys load in parallel.
4. Unknown and corrupt keys are remembered for a short time.
5. A key is `subject@revision`, so a retrained subject never gets old weights.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Any

from dbray.errors import DbrayError
from dbray.serving.failures import Clock, Failures
from dbray.serving.replica.holds import Flight, Hold
from dbray.serving.replica.tiers import Level, Tier, Watcher

_log = logging.getLogger(__name__)


class CacheFull(DbrayError):
    """No room: everything that is held is in use. A later attempt may succeed."""

    retryable = True


def _give_back(loading: Future[Hold]) -> None:
    if not loading.cancelled() and loading.exception() is None:
        loading.result().release()


class TieredCache:
    """Levels over a storage, lowest first (disk, RAM, device). Thread-safe.

    Args:
        levels: lowest first; the lowest level's `make` is given None and reads storage.
        verify: checks what the level `lowest_usable` made, before it is kept. Raises if it is bad.
        background: verifies, admits keys to the tiers, and brings them up.
        storage: what the place below the lowest level is called.
        lowest_usable: index of the lowest level whose values a hold may hold.
        remembered: the errors that say a key is unknown or corrupt, kept `failure_seconds`.
        watcher: receives hits, loads and evictions.
    """

    def __init__(  # noqa: PLR0913 - every one by name, and each a decision of its own
        self,
        levels: Sequence[Level[Any]],
        verify: Callable[[str, Any], object],
        background: Executor,
        *,
        storage: str = "storage",
        lowest_usable: int = 0,
        remembered: tuple[type[Exception], ...] = (),
        failure_seconds: float = 5.0,
        watcher: Watcher | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.levels = tuple(levels)
        self.failures = Failures(failure_seconds, clock)
        self._verify = verify
        self._background = background
        self._storage = storage
        self._lowest_usable = lowest_usable
        self._remembered = remembered
        self._watcher = watcher
        self._clock = clock
        self._flights: dict[str, Flight] = {}
        self._lock = threading.Lock()

    def hold_if_loaded(self, key: str) -> Hold | None:
        """Hold a key that is in a tier, without further memory; None if it has to be loaded."""
        return self._pin(key, self._clock(), None)

    async def hold(self, key: str, readers: Executor) -> Hold:
        """Take a key into use from the highest tier that has it, and bring it up for next time.

        Only a read from storage takes a thread of `readers`.

        Raises:
            CacheFull: what is in use leaves no room to fetch it.
            Exception: whatever the levels' `make` raised, now or a short time ago.
        """
        started = self._clock()
        followed: Flight | None = None
        while True:
            hold = self._pin(key, started, followed)
            if hold is not None:
                return hold
            followed, leads = self._join(key)
            if leads:
                return await self._lead(key, followed, started, readers)
            await asyncio.wrap_future(followed.landed)
            followed.check()

    async def _lead(self, key: str, flight: Flight, started: float, readers: Executor) -> Hold:
        loading = readers.submit(self._first, key, flight, started)
        try:
            # Shielded: a caller that disconnects must not end a load that others wait for.
            return await asyncio.shield(asyncio.wrap_future(loading))
        except asyncio.CancelledError:
            loading.add_done_callback(_give_back)
            raise

    def purge(self, doomed: Callable[[str], bool], error: Exception) -> int:
        """Drop every key that `doomed` selects from every tier, and refuse it for a short time."""
        with self._lock:
            flying = {key: flight for key, flight in self._flights.items() if doomed(key)}
            for flight in flying.values():  # its value will not be kept
                flight.error = error
        chosen = flying.keys() | {key for key in self.keys() if doomed(key)}
        for key in chosen:
            self.failures.remember(key, error)
            self._discard(key)
        return len(chosen)

    def keys(self) -> set[str]:
        """The keys of all tiers."""
        return {key for level in self.levels for key in level.tier.keys()}  # noqa: SIM118

    def _discard(self, key: str) -> None:
        for level in self.levels:
            level.tier.discard(key)

    def _pin(self, key: str, started: float, followed: Flight | None) -> Hold | None:
        """Hold a key that a usable tier has. Returns at once."""
        for level in reversed(self.levels[self._lowest_usable :]):
            value = level.tier.pin(key)
            if value is not None:
                source = (followed.source if followed else "") or level.tier.name
                lift = None if level is self.levels[-1] else lambda: self._rise(key)
                seconds = self._clock() - started
                return self._given(Hold(key, value, level.tier, source, seconds, None, lift))
        return None

    def _given(self, hold: Hold) -> Hold:
        if self._watcher:
            self._watcher.hit(hold.source)
        return hold

    def _join(self, key: str) -> tuple[Flight, bool]:
        with self._lock:
            known = self.failures.get(key)
            if known is not None:
                raise known.with_traceback(None)
            flight = self._flights.get(key)
            if flight is not None:
                return flight, False
            flight = self._flights[key] = Flight()
            return flight, True

    def _rise(self, key: str) -> None:
        """Load a key from a lower tier into the highest, in the background."""
        try:
            flight, leads = self._join(key)
        except Exception:  # noqa: BLE001 - purged meanwhile: the next hold raises it
            return
        if leads:
            self._background.submit(self._fly, key, flight, lambda: None)

    def _first(self, key: str, flight: Flight, started: float) -> Hold:
        """Read a key that is in no tier. It is verified and kept in the background."""
        level = self.levels[self._lowest_usable]
        try:
            below, flight.source, held = self._fetch(key)
            try:
                value, size_bytes = level.make(key, below)
            finally:
                if held is not None:
                    held.unpin(key)
        except Exception as exc:
            self._land(key, flight, exc)
            raise
        seconds = self._clock() - started
        hold = Hold(key, value, None, flight.source, seconds, flight)

        def admit() -> None:
            self._verify(key, value)
            flight.check()
            if self._watcher:
                self._watcher.load(level.tier.name, seconds)
            if level.tier.reserve(size_bytes):
                level.tier.commit(key, value, size_bytes)
                hold.keep(level.tier)

        self._background.submit(self._fly, key, flight, admit)
        return self._given(hold)

    def _fetch(self, key: str) -> tuple[Any, str, Tier[Any] | None]:
        """Load a key into the level below the lowest usable; return value, source, pinned tier."""
        if self._lowest_usable == 0:
            return None, self._storage, None
        level = self.levels[self._lowest_usable - 1]
        value = level.tier.pin(key)
        if value is not None:
            return value, level.tier.name, level.tier
        value = self._make(level, key, None)
        if value is None:
            raise CacheFull(f"no room to fetch {key}: all that is held is in use")
        return value, self._storage, level.tier

    def _fly(self, key: str, flight: Flight, admit: Callable[[], object]) -> None:
        error: Exception | None = None
        try:
            admit()
            flight.check()
            flight.verified.set()
            self._climb(key)
        except Exception as exc:  # noqa: BLE001 - kept for all who wait for this key
            if flight.verified.is_set():  # the value in the lower tiers is good
                _log.warning("model=%s stays in a lower tier: %s", key, type(exc).__name__)
            else:
                error = exc
        self._land(key, flight, error)

    def _land(self, key: str, flight: Flight, error: Exception | None) -> None:
        if isinstance(error, self._remembered):
            self.failures.remember(key, error)
        with self._lock:
            flight.error = flight.error or error
            if flight.error is not None:  # perhaps of a purge: drop what was made since
                self._discard(key)
            del self._flights[key]
        flight.verified.set()
        flight.landed.set_result(None)

    def _climb(self, key: str) -> None:
        """Make a key's value in every level above the one that has it, while there is room."""
        held, value = None, None
        for level in self.levels[self._lowest_usable :]:
            here = level.tier.pin(key)
            if here is None and held is not None:
                try:
                    here = self._make(level, key, value)
                except BaseException:
                    held.unpin(key)
                    raise
            if here is None:
                continue
            if held is not None:
                held.unpin(key)
            held, value = level.tier, here
        if held is not None:
            held.unpin(key)

    def _make(self, level: Level[Any], key: str, below: Any) -> Any | None:
        """Make a value and commit it, pinned; None if there is no room for it."""
        started = self._clock()
        tier = level.tier
        if level.size_of is None:
            value, size_bytes = level.make(key, below)
            if not tier.reserve(size_bytes):
                tier.dispose(value)
                return None
        else:
            size_bytes = level.size_of(below)
            if not tier.reserve(size_bytes):
                return None
            try:
                value, _ = level.make(key, below)
            except BaseException:
                tier.cancel(size_bytes)
                raise
        tier.commit(key, value, size_bytes)
        if self._watcher:
            self._watcher.load(tier.name, self._clock() - started)
        return value
