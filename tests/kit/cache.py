"""Blocking holds of the cache, for tests without an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from dbray.serving.replica.cache import TieredCache
from dbray.serving.replica.holds import Hold

_READERS = ThreadPoolExecutor(16)


def held(cache: TieredCache, key: str) -> Hold:
    """Hold a key."""
    return asyncio.run(cache.hold(key, _READERS))


@contextmanager
def using(cache: TieredCache, key: str) -> Iterator[Hold]:
    """Hold a key for a block."""
    hold = held(cache, key)
    try:
        yield hold
    finally:
        hold.release()
