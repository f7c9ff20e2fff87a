"""What the ingress knows of the registry: which models are there, and what they look like.

Every request looks anew (unless `fresh_seconds` allows an older look), so that a retrained subject
is served by the next request after it was published. Blocking; call it from a thread.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from dbray.errors import ModelNotFound, RegistryError
from dbray.registry import ModelRecord, Registry
from dbray.serving.cache import Failures
from dbray.store import Store

T = TypeVar("T")
Clock = Callable[[], float]

_MAX_RECORDS = 10_000
_MAX_PREVIEWS = 32
_UNKNOWN_SECONDS = 1.0
_LIST_SECONDS = 2.0


class Recent(Generic[T]):
    """The last values by key, for a time. Thread-safe."""

    def __init__(self, count: int, seconds: float, clock: Clock = time.monotonic) -> None:
        self._count, self._seconds, self._clock = count, seconds, clock
        self._values: OrderedDict[str, tuple[float, T]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str, make: Callable[[], T]) -> T:
        """Return the value, made now if there is none that is fresh; empty ones are not kept."""
        with self._lock:
            at, value = self._values.get(key, (float("-inf"), None))
            if value and self._clock() - at < self._seconds:
                return value
        made = make()
        with self._lock:
            self._values[key] = (self._clock(), made)
            self._values.move_to_end(key)
            while len(self._values) > self._count:
                self._values.popitem(last=False)
        return made

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._values.clear()


class Catalogue:
    """Looks into a registry."""

    def __init__(self, registry: str, fresh_seconds: float, clock: Clock = time.monotonic) -> None:
        self._registry = Registry(Store(registry))
        self._unknown = Failures(_UNKNOWN_SECONDS if fresh_seconds else 0.0, clock)
        self._records = Recent[ModelRecord](_MAX_RECORDS, fresh_seconds, clock)
        self._lists = Recent[list[ModelRecord]](1, _LIST_SECONDS, clock)
        self._previews = Recent[dict[str, bytes]](_MAX_PREVIEWS, float("inf"), clock)

    def find(self, model: str) -> ModelRecord | None:
        """Find 'id' or 'id@revision'; None if there is no such model."""
        if self._unknown.get(model):
            return None
        try:
            return self._records.get(model, lambda: self._look(model))
        except RegistryError as exc:
            self._unknown.remember(model, exc)
            return None

    def _look(self, model: str) -> ModelRecord:
        if "@" in model:
            return self._registry.find(model)
        # Not `find`: it lists the whole registry for names that come near, which strangers could
        # make it do as often as they like.
        revisions = self._registry.revisions(model)
        if not revisions:
            raise ModelNotFound(model)
        return revisions[-1]

    def models(self) -> list[ModelRecord]:
        """The latest revision of every model, at most a few seconds old."""
        return self._lists.get("", lambda: list(self._registry.list()))

    def previews(self, record: ModelRecord) -> dict[str, bytes]:
        """Files of a model's previews by name; empty if it has none yet."""
        return self._previews.get(record.name, lambda: self._registry.previews(record) or {})

    def remove(self, model: str) -> list[str]:
        """Take a model down, or one of its revisions."""
        try:
            return self._registry.remove(model)
        finally:
            self._records.clear()
            self._lists.clear()
