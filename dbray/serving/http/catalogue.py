"""What the ingress knows of the registry: which models are there, and what they look like.

Every request looks anew at names and markers (unless `fresh_seconds` allows an older look), so that
a retrained subject is served by the next request after it was published; the records themselves
never change, and are read once. Nothing of a model outlives its removal but its record, which is
given to nobody then. Blocking; call it from a thread.

Raises StoreError where storage does not answer: that says nothing of whether a model exists.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from dbray.errors import RegistryError
from dbray.records import previews as layout
from dbray.records.annexes import Annex
from dbray.records.models import RECORD_FILE, ModelRecord, Registry
from dbray.serving.failures import Failures
from dbray.storage.committed import Committed
from dbray.storage.store import Store

T = TypeVar("T")
Clock = Callable[[], float]

_MAX_FOUND = 10_000
# A listing goes through all in order: of fewer than there are models it would find none in memory,
# and the list itself has as many.
_MAX_RECORDS = 100_000
_UNKNOWN_SECONDS = 1.0
_LIST_SECONDS = 2.0


class Recent(Generic[T]):
    """The last values by key, for a time since they were made. Thread-safe.

    Who asks while one is made waits for it, however long it takes: slow storage is not asked again.
    """

    def __init__(self, count: int, seconds: float, clock: Clock = time.monotonic) -> None:
        self._count, self._seconds, self._clock = count, seconds, clock
        self._values: OrderedDict[str, tuple[float, Future[T]]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str, make: Callable[[], T]) -> T:
        """Return the value, made now if there is none that is fresh; failures are not kept."""
        with self._lock:
            at, value = self._values.get(key, (float("-inf"), None))
            if value is None or self._clock() - at >= self._seconds:
                made: Future[T] = Future()
                self._values[key] = (float("inf"), made)
                self._values.move_to_end(key)
                while len(self._values) > self._count:
                    self._values.popitem(last=False)
            else:
                made = value
        if made is not value:
            self._fulfil(key, made, make)
        return made.result()

    def _fulfil(self, key: str, made: Future[T], make: Callable[[], T]) -> None:
        try:
            value = make()
        except BaseException as exc:  # noqa: BLE001 - raised to all who wait for it
            with self._lock:
                if self._is_last(key, made):
                    del self._values[key]
            made.set_exception(exc)
            return
        with self._lock:
            if self._is_last(key, made):
                self._values[key] = (self._clock(), made)
        made.set_result(value)

    def _is_last(self, key: str, made: Future[T]) -> bool:
        return self._values.get(key, (0.0, None))[1] is made

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._values.clear()


class _Remembering(Registry):
    """Reads a record once. Its digest, in the marker, says that it is still the same."""

    def __init__(self, store: Store, clock: Clock) -> None:
        super().__init__(store)
        self._records = Recent[ModelRecord](_MAX_RECORDS, float("inf"), clock)

    def _record(self, name: str, folder: Committed) -> ModelRecord:
        read = super()._record
        key = f"{name} {folder.files[RECORD_FILE].sha256}"
        return self._records.get(key, lambda: read(name, folder))


class Catalogue:
    """Looks into a registry."""

    def __init__(self, registry: str, fresh_seconds: float, clock: Clock = time.monotonic) -> None:
        self._registry = _Remembering(Store(registry), clock)
        self._fresh_seconds = fresh_seconds
        self._unknown = Failures(_UNKNOWN_SECONDS, clock)
        self._found = Recent[ModelRecord](_MAX_FOUND, fresh_seconds, clock)
        self._lists = Recent[list[ModelRecord]](1, _LIST_SECONDS, clock)

    def find(self, model: str) -> ModelRecord | None:
        """Find 'id' or 'id@revision'; None if there is no such model, or a damaged one."""
        try:
            if not self._fresh_seconds:
                return self._look(model)
            if self._unknown.get(model):
                return None
            return self._found.get(model, lambda: self._look(model))
        except RegistryError as exc:
            self._unknown.remember(model, exc)
            return None

    def _look(self, model: str) -> ModelRecord:
        # Without suggestions: they list the whole registry, as often as strangers like.
        return self._registry.open(model, suggest=False).record

    def models(self) -> list[ModelRecord]:
        """The latest revision of every model, at most a few seconds old."""
        return self._lists.get("", lambda: list(self._registry.list()))

    def previews(self, record: ModelRecord) -> list[str]:
        """Names of a model's pictures; empty if it has none yet."""
        return [name for name in self._previews(record).names() if layout.is_picture(name)]

    def preview(self, record: ModelRecord, name: str) -> bytes | None:
        """One of a model's pictures."""
        return self._previews(record).file(name) if layout.is_picture(name) else None

    def preview_prompts(self, record: ModelRecord) -> list[str]:
        """The prompts of the numbered previews, where they are known."""
        description = self._previews(record).file(layout.DESCRIPTION)
        try:
            return layout.prompts_of(description) if description else []
        except ValueError:
            return []

    def _previews(self, record: ModelRecord) -> Annex:
        return layout.annex(self._registry.store, record.name)

    def remove(self, model: str) -> list[str]:
        """Take a model down, or one of its revisions; returns 'id@revision' of each."""
        try:
            return self._registry.remove(model)
        finally:
            self._found.clear()
            self._lists.clear()
