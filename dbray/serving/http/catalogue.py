"""What the ingress reads of the registry: which models exist, their previews and scores.

Every request reads names and markers again (unless `fresh_seconds` allows an older answer), so that
the next request after a publication is served the new revision. Records never change, and are read
once. After a model's removal only its record stays in memory, and is not returned. All calls block:
make them from a thread.

Raises StoreError if storage cannot be read, which does not mean that a model does not exist.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from dbray.errors import RegistryError
from dbray.records import previews as layout
from dbray.records import scores
from dbray.records.annexes import Annex
from dbray.records.models import RECORD_FILE, ModelRecord, Registry
from dbray.scores.values import ScoreName, Scores, rank_of
from dbray.serving.failures import Failures
from dbray.serving.http.access.tenants import EVERYONE
from dbray.serving.presence import Presence
from dbray.storage.committed import Committed
from dbray.storage.store import Store

T = TypeVar("T")
Clock = Callable[[], float]
Listed = tuple[ModelRecord, Scores | None]

_MAX_FOUND = 10_000
# A listing reads all records in order: with room for fewer, each would be dropped before it is read
# again.
_MAX_RECORDS = 100_000
_UNKNOWN_SECONDS = 1.0
_LIST_SECONDS = 2.0
_SCORES_SECONDS = 60.0
"""Scores change only when a job scores a model again."""
_READERS = 16


class Recent(Generic[T]):
    """The last values by key, for a time since they were made. Thread-safe.

    While a value is made, other callers wait for it, so that slow storage is not read twice.
    """

    def __init__(self, count: int, seconds: float, clock: Clock = time.monotonic) -> None:
        self._count, self._seconds, self._clock = count, seconds, clock
        self._values: OrderedDict[str, tuple[float, Future[T]]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str, make: Callable[[], T]) -> T:
        """Return the value, made now unless there is a recent one; failures are not kept."""
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
        except BaseException as exc:  # noqa: BLE001 - raised to all who wait
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
        """Drop all values."""
        with self._lock:
            self._values.clear()


class _Remembering(Registry):
    """Reads a record once, as long as its digest in the marker stays the same."""

    def __init__(self, store: Store, clock: Clock) -> None:
        super().__init__(store)
        self._records = Recent[ModelRecord](_MAX_RECORDS, float("inf"), clock)
        self.owners: OrderedDict[str, str | None] = OrderedDict()

    def _record(self, name: str, folder: Committed) -> ModelRecord:
        read = super()._record
        key = f"{name} {folder.files[RECORD_FILE].sha256}"
        record = self._records.get(key, lambda: read(name, folder))
        self.owners[record.id] = record.tenant
        if len(self.owners) > _MAX_RECORDS:
            self.owners.popitem(last=False)
        return record


class Catalogue:
    """Looks into a registry."""

    def __init__(self, registry: str, fresh_seconds: float, clock: Clock = time.monotonic) -> None:
        self._registry = _Remembering(Store(registry), clock)
        self._presence = Presence(self._registry.store)
        self._fresh_seconds = fresh_seconds
        self._unknown = Failures(_UNKNOWN_SECONDS, clock)
        self._found = Recent[ModelRecord](_MAX_FOUND, fresh_seconds, clock)
        self._lists = Recent[list[ModelRecord]](1, _LIST_SECONDS, clock)
        self._scores = Recent[Scores | None](_MAX_RECORDS, _SCORES_SECONDS, clock)

    def find(self, model: str) -> ModelRecord:
        """Find 'id' or 'id@revision'. Raises RegistryError or StoreError."""
        if not self._fresh_seconds:
            return self._look(model)
        known = self._unknown.get(model)
        if known:
            raise known
        try:
            return self._found.get(model, lambda: self._look(model))
        except RegistryError as exc:
            self._unknown.remember(model, exc)
            raise

    def _look(self, model: str) -> ModelRecord:
        try:
            # Without suggestions: they list the whole registry, for any stranger who asks.
            return self._registry.open(model, suggest=False).record
        except RegistryError:
            self.check()
            raise

    def owner(self, model: str) -> str | None:
        """The tenant of a damaged model, if a record of it was read before; else EVERYONE."""
        return self._registry.owners.get(model.partition("@")[0], EVERYONE)

    def check(self) -> None:
        """Raise StoreError if the whole registry is missing."""
        self._presence.check()

    def models(self) -> list[ModelRecord]:
        """The latest revision of every model, at most a few seconds old."""
        return self._lists.get("", self._list)

    def _list(self) -> list[ModelRecord]:
        self.check()
        return list(self._registry.list())

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

    def scores(self, record: ModelRecord) -> Scores | None:
        """A model's scores, at most a minute old; None if it has none."""
        store = self._registry.store
        return self._scores.get(record.name, lambda: scores.read(store, record.name))

    def sorted_by(self, column: ScoreName, records: Sequence[ModelRecord]) -> list[Listed]:
        """Sort models by a score, the best first, then by id; those without it are last."""
        with ThreadPoolExecutor(_READERS) as threads:
            found = zip(records, threads.map(self.scores, records), strict=True)
            return sorted(found, key=lambda one: (rank_of(one[1], column), one[0].id))

    def _previews(self, record: ModelRecord) -> Annex:
        return layout.annex(self._registry.store, record.name)

    def remove(self, model: str) -> list[str]:
        """Take a model down, or one of its revisions; returns 'id@revision' of each."""
        self.check()
        try:
            return self._registry.remove(model)
        finally:
            self._found.clear()
            self._lists.clear()
