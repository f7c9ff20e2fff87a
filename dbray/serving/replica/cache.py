"""Where a model's weights lie: storage -> local disk -> RAM -> device, each within a byte budget.

Owns what stays and what goes; knows neither torch nor Ray nor what the values are. The rules:

1. Load before evict: a value is made and verified before anything makes room for it, so that an
   unknown or corrupt model throws nothing out.
2. What is in use is pinned, and is never evicted; where pins leave no room, the newcomer yields:
   it is used, but not kept. How much is in use at once is for others to bound (see `loads`).
3. One load per key however many ask; different keys load in parallel.
4. Unknown and corrupt keys are remembered for a short time.
5. A key is `subject@revision`, so a retrained subject never gets stale weights.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from dbray.errors import DbrayError
from dbray.serving.failures import Clock, Failures
from dbray.serving.replica.tiers import Level, Tier, Watcher

_log = logging.getLogger(__name__)


class CacheFull(DbrayError):
    """No room: all that is held is in use. Trying again later helps."""

    retryable = True


class _Flight:
    """A key on its way up, and how that ended.

    `verified` comes first: what was made with the value may leave. `landed`: it is as far up as
    there is room. `error` may be set at any time, by a purge.
    """

    def __init__(self) -> None:
        self.verified = threading.Event()
        self.landed: Future[None] = Future()
        self.landed.set_running_or_notify_cancel()  # who stops waiting must not stop the others
        self.error: Exception | None = None
        self.source = ""

    def check(self) -> None:
        """Raise what went wrong."""
        if self.error is not None:
            raise self.error.with_traceback(None)


@dataclass
class Lease:
    """A value to use. `source` is the tier that had it when it was asked for.

    A value fresh from storage is given before it is verified, so that work with it can begin; it
    is in no tier until then. Nothing made with it may leave before `settle` returned.
    """

    key: str
    value: Any
    tier: Tier[Any] | None
    source: str
    load_seconds: float
    _flight: _Flight | None = field(default=None, repr=False)
    _rise: Callable[[], object] | None = field(default=None, repr=False)
    _released: bool = field(default=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def rise(self) -> None:
        """Let the key be brought up in the background, when that disturbs least.

        `release` does it at the latest.
        """
        rise, self._rise = self._rise, None
        if rise is not None:
            rise()

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

    def _keep(self, tier: Tier[Any]) -> None:
        """Take over a pin of the tier that the value came into; it may be released already."""
        with self._lock:
            if not self._released:
                self.tier = tier
                return
        tier.unpin(self.key)


def _give_back(loading: Future[Lease]) -> None:
    if not loading.cancelled() and loading.exception() is None:
        loading.result().release()


class TieredCache:
    """Levels over a storage, lowest first (disk, RAM, device). Thread-safe; `lease` blocks.

    Args:
        levels: lowest first; the lowest level's `make` is given None and reads storage.
        verify: checks what the level `lowest_usable` made, before it is kept. Raises if it is bad.
        background: verifies, admits keys to the tiers, and brings them up.
        storage: what the place below the lowest level is called.
        lowest_usable: index of the lowest level whose values a lease may hold.
        remembered: the errors that say a key is unknown or corrupt, kept `failure_seconds`.
        watcher: is told of hits, loads and evictions.
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
        self._flights: dict[str, _Flight] = {}
        self._lock = threading.Lock()

    @contextmanager
    def using(self, key: str) -> Iterator[Lease]:
        """Lease for a block."""
        lease = self.lease(key)
        try:
            yield lease
        finally:
            lease.release()

    def lease(self, key: str) -> Lease:
        """Take a key into use from the highest tier that has it, and bring it up for next time.

        Raises:
            CacheFull: when what is in use leaves no room to fetch it.
            Exception: whatever the levels' `make` raised, now or a short time ago.
        """
        started = self._clock()
        followed: _Flight | None = None
        while True:
            lease = self._pin(key, started, followed)
            if lease is not None:
                return lease
            followed, leads = self._join(key)
            if leads:
                return self._first(key, followed, started)
            followed.landed.result()
            followed.check()

    def lease_held(self, key: str) -> Lease | None:
        """Lease a key that a tier holds, at no cost of memory; None if it must be loaded."""
        return self._pin(key, self._clock(), None)

    async def lease_soon(self, key: str, readers: Executor) -> Lease:
        """`lease` for an event loop: nobody holds a thread of `readers` but who reads storage."""
        started = self._clock()
        followed: _Flight | None = None
        while True:
            lease = self._pin(key, started, followed)
            if lease is not None:
                return lease
            followed, leads = self._join(key)
            if leads:
                loading = readers.submit(self._first, key, followed, started)
                try:
                    # Shielded: a caller who hangs up must not end a load that others wait for.
                    return await asyncio.shield(asyncio.wrap_future(loading))
                except asyncio.CancelledError:
                    loading.add_done_callback(_give_back)
                    raise
            await asyncio.wrap_future(followed.landed)
            followed.check()

    def purge(self, doomed: Callable[[str], bool], error: Exception) -> int:
        """Drop every key that `doomed` names from every tier, and refuse it for a short time."""
        with self._lock:
            flying = {key: flight for key, flight in self._flights.items() if doomed(key)}
            for flight in flying.values():  # however long it still takes, it will not be kept
                flight.error = error
        chosen = flying.keys() | {key for key in self.keys() if doomed(key)}
        for key in chosen:
            self.failures.remember(key, error)
            self._discard(key)
        return len(chosen)

    def keys(self) -> set[str]:
        """Everything held in any tier."""
        return {key for level in self.levels for key in level.tier.keys()}  # noqa: SIM118

    def _discard(self, key: str) -> None:
        for level in self.levels:
            level.tier.discard(key)

    def _pin(self, key: str, started: float, followed: _Flight | None) -> Lease | None:
        """Lease a key that a usable tier has. Returns at once."""
        for level in reversed(self.levels[self._lowest_usable :]):
            value = level.tier.pin(key)
            if value is not None:
                source = (followed.source if followed else "") or level.tier.name
                lease = Lease(key, value, level.tier, source, self._clock() - started)
                if level is not self.levels[-1]:
                    lease._rise = lambda: self._rise(key)
                return self._given(lease)
        return None

    def _given(self, lease: Lease) -> Lease:
        if self._watcher:
            self._watcher.hit(lease.source)
        return lease

    def _join(self, key: str) -> tuple[_Flight, bool]:
        with self._lock:
            known = self.failures.get(key)
            if known is not None:
                raise known.with_traceback(None)
            flight = self._flights.get(key)
            if flight is not None:
                return flight, False
            flight = self._flights[key] = _Flight()
            return flight, True

    def _rise(self, key: str) -> None:
        """Bring a key that is in a lower tier to the top, in the background."""
        try:
            flight, leads = self._join(key)
        except Exception:  # noqa: BLE001 - purged since: the next lease will say so
            return
        if leads:
            self._background.submit(self._fly, key, flight, lambda: None)

    def _first(self, key: str, flight: _Flight, started: float) -> Lease:
        """Read a key that no tier has. It is verified and admitted in the background."""
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
        lease = Lease(key, value, None, flight.source, seconds, flight)

        def admit() -> None:
            self._verify(key, value)
            flight.check()
            if self._watcher:
                self._watcher.load(level.tier.name, seconds)
            if level.tier.reserve(size_bytes):
                level.tier.commit(key, value, size_bytes)
                lease._keep(level.tier)

        self._background.submit(self._fly, key, flight, admit)
        return self._given(lease)

    def _fetch(self, key: str) -> tuple[Any, str, Tier[Any] | None]:
        """Bring a key to the level below the lowest usable; returns value, source, pinned tier."""
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

    def _fly(self, key: str, flight: _Flight, admit: Callable[[], object]) -> None:
        error: Exception | None = None
        try:
            admit()
            flight.check()
            flight.verified.set()
            self._climb(key)
        except Exception as exc:  # noqa: BLE001 - kept for all who wait for this key
            if flight.verified.is_set():  # what is in the lower tiers is good all the same
                _log.warning("model=%s stays in a lower tier: %s", key, type(exc).__name__)
            else:
                error = exc
        self._land(key, flight, error)

    def _land(self, key: str, flight: _Flight, error: Exception | None) -> None:
        if isinstance(error, self._remembered):
            self.failures.remember(key, error)
        with self._lock:
            flight.error = flight.error or error
            if flight.error is not None:  # maybe a purge's: what was made since goes too
                self._discard(key)
            del self._flights[key]
        flight.verified.set()
        flight.landed.set_result(None)

    def _climb(self, key: str) -> None:
        """Make a key in every level above the highest usable one that has it, if there is room."""
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
