"""One tier of the cache: values by key, least recently used first out, within a budget of bytes.

Does not know what the values are, or which tiers are above or below.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")


class Watcher(Protocol):
    """Receives events for metrics. Its methods must return at once."""

    def hit(self, tier: str) -> None:
        """A hold was given: from this tier, or after a load from storage."""

    def load(self, tier: str, seconds: float) -> None:
        """A value was made for this tier."""

    def evict(self, tier: str) -> None:
        """A value was dropped to make room."""

    def size(self, tier: str, used_bytes: int) -> None:
        """A tier now holds this many bytes."""


@dataclass
class _Entry(Generic[T]):
    value: T
    size_bytes: int
    num_pins: int = 0
    doomed: bool = False


class Tier(Generic[T]):
    """Values by key, least recently used first out, within a budget of bytes. Thread-safe."""

    def __init__(
        self,
        name: str,
        budget_bytes: int,
        watcher: Watcher | None = None,
        dispose: Callable[[T], None] | None = None,
    ) -> None:
        self.name = name
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self._watcher = watcher
        self._dispose = dispose
        self._entries: OrderedDict[str, _Entry[T]] = OrderedDict()
        self._lock = threading.RLock()

    def keys(self) -> list[str]:
        """List the keys, the least recently used first."""
        with self._lock:
            return [key for key, entry in self._entries.items() if not entry.doomed]

    def num_pins(self, key: str) -> int:
        """Count the users of a key."""
        with self._lock:
            entry = self._entries.get(key)
            return entry.num_pins if entry else 0

    def pin(self, key: str) -> T | None:
        """Take a value into use, or return None. Every pin needs an `unpin`."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or entry.doomed:
                return None
            entry.num_pins += 1
            self._entries.move_to_end(key)
            return entry.value

    def unpin(self, key: str) -> None:
        """Stop using a value."""
        with self._lock:
            entry = self._entries[key]
            entry.num_pins -= 1
            if entry.doomed and entry.num_pins == 0:
                self._drop(key)

    def could_hold(self, size_bytes: int) -> bool:
        """Whether evicting all unused values would make enough room. Evicts nothing."""
        with self._lock:
            free = self.budget_bytes - self.used_bytes
            idle = sum(e.size_bytes for e in self._entries.values() if e.num_pins == 0)
            return size_bytes <= free + idle

    def reserve(self, size_bytes: int) -> bool:
        """Reserve room, evicting only if that suffices. `commit` or `cancel` has to follow."""
        with self._lock:
            if not self.could_hold(size_bytes):
                return False
            while self.used_bytes + size_bytes > self.budget_bytes:
                oldest = next(key for key, e in self._entries.items() if e.num_pins == 0)
                self._drop(oldest)
                if self._watcher:
                    self._watcher.evict(self.name)
            self._use(size_bytes)
            return True

    def cancel(self, size_bytes: int) -> None:
        """Release reserved room."""
        with self._lock:
            self._use(-size_bytes)

    def commit(self, key: str, value: T, size_bytes: int) -> None:
        """Keep a value in the room reserved for it, pinned once for the caller."""
        with self._lock:
            doomed = self._entries.get(key)
            if doomed is not None:  # discarded, but still in use: the same content again
                self._use(-size_bytes)
                doomed.doomed = False
                doomed.num_pins += 1
            else:
                self._entries[key] = _Entry(value, size_bytes, num_pins=1)

    def dispose(self, value: T) -> None:
        """Clean up a value that is not kept, for example its files."""
        if self._dispose:
            self._dispose(value)

    def discard(self, key: str) -> bool:
        """Drop a key now, or after its last use; it cannot be pinned again."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return False
            if entry.num_pins:
                entry.doomed = True
            else:
                self._drop(key)
            return True

    def _drop(self, key: str) -> None:
        entry = self._entries.pop(key)
        self._use(-entry.size_bytes)
        self.dispose(entry.value)

    def _use(self, size_bytes: int) -> None:
        self.used_bytes += size_bytes
        if self._watcher:
            self._watcher.size(self.name, self.used_bytes)


@dataclass(frozen=True)
class Level(Generic[T]):
    """A tier, and how its values are made from those of the level below.

    If `make(key, below)` fails, nothing was evicted. With `size_of`, the size is known in advance
    and room is made first, so that the budget is never exceeded: for scarce memory, and for values
    whose making cannot fail.
    """

    tier: Tier[T]
    make: Callable[[str, Any], tuple[T, int]]
    size_of: Callable[[Any], int] | None = None
