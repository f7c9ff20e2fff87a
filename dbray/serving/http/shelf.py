"""Images that were requested as URLs: kept in memory for an hour under unguessable names.

Whoever has the name may read the image, as with OpenAI's URLs. Beyond `MAX_BYTES` over all tenants,
the oldest images of the tenant with the most bytes are dropped first.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass

from dbray.serving.messages import Ask, names_of

KEEP_SECONDS = 3600.0
MAX_BYTES = 256 * 2**20


@dataclass(frozen=True)
class _Kept:
    data: bytes
    tenant: str
    model: str
    ends: float


class Shelf:
    """Image files by unguessable names."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: dict[str, _Kept] = {}

    def put(self, ask: Ask, images: Collection[bytes]) -> tuple[str, ...]:
        """Keep the images of a request; returns their names."""
        ends = self._clock() + KEEP_SECONDS
        names = tuple(f"{secrets.token_urlsafe(24)}.{ask.output_format}" for _ in images)
        for name, data in zip(names, images, strict=True):
            self._kept[name] = _Kept(data, ask.tenant, ask.key, ends)
        self._make_room()
        return names

    def get(self, name: str) -> bytes | None:
        """The image of a name, if it is still kept."""
        kept = self._kept.get(name)
        return kept.data if kept and self._clock() < kept.ends else None

    def forget(self, models: Collection[str]) -> None:
        """Drop the images of revisions that were taken down."""
        self._kept = {
            name: k for name, k in self._kept.items() if names_of(k.model).isdisjoint(models)
        }

    def _make_room(self) -> None:
        now = self._clock()
        self._kept = {name: k for name, k in self._kept.items() if now < k.ends}
        held = Counter[str]()
        for kept in self._kept.values():
            held[kept.tenant] += len(kept.data)
        while held.total() > MAX_BYTES:
            largest = held.most_common(1)[0][0]
            oldest = next(name for name, k in self._kept.items() if k.tenant == largest)
            held[largest] -= len(self._kept.pop(oldest).data)
