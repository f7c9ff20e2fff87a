"""Loads models before their requests are served: a limited number at once, in the order of serving.

Owns the limit of models in use beside those that the cache keeps: without it, all requested models
would be in memory at once. A model that a tier keeps does not count any more. For one event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from dbray.serving.replica.cache import Hold, TieredCache
from dbray.serving.replica.fair_queue import Turn


@dataclass(eq=False)
class _Load:
    """A model that is being loaded or in use: one hold for all its users."""

    hold: asyncio.Task[Hold]
    num_users: int = 0

    @property
    def is_kept(self) -> bool:
        """Whether its memory is that of a tier."""
        is_loaded = self.hold.done() and not self.hold.cancelled() and not self.hold.exception()
        return is_loaded and self.hold.result().tier is not None


@dataclass(eq=False)
class _Waiter:
    key: str
    turn: Callable[[], Turn]
    entered: asyncio.Event


class Loads:
    """Holds of a cache, of which a limited number needs memory beyond that of its tiers."""

    def __init__(self, cache: TieredCache, readers: Executor, count: int) -> None:
        self._cache = cache
        self._readers = readers
        self._count = count
        self._loads: dict[str, _Load] = {}
        self._waiting: list[_Waiter] = []
        self._landings: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def using(self, key: str, turn: Callable[[], Turn]) -> AsyncGenerator[Hold]:
        """Hold for a block: at once if it is in a tier, else when there is room for one more.

        The room goes to the lowest `turn`, called when it is given. Raises as the cache's `hold`.
        """
        hold = self._cache.hold_if_loaded(key)
        if hold is not None:
            try:
                yield hold
            finally:
                hold.release()
            return
        await self._enter(key, turn)
        try:
            # Shielded: other users wait for it too.
            yield await asyncio.shield(self._loads[key].hold)
        finally:
            self._leave(key)

    async def _enter(self, key: str, turn: Callable[[], Turn]) -> None:
        if key in self._loads and not self._waiting:
            self._loads[key].num_users += 1
            return
        waiter = _Waiter(key, turn, asyncio.Event())
        self._waiting.append(waiter)
        self._admit()
        try:
            await waiter.entered.wait()
        except asyncio.CancelledError:
            if waiter.entered.is_set():
                self._leave(key)
            else:
                self._waiting.remove(waiter)
                self._admit()
            raise

    def _admit(self) -> None:
        """Admit the next waiter, together with all others for the same model.

        A later waiter for a model in use has to wait: a model in constant demand would otherwise
        never make room.
        """
        while self._waiting:
            key = min(self._waiting, key=lambda waiter: waiter.turn()).key
            if key not in self._loads:
                if sum(not load.is_kept for load in self._loads.values()) >= self._count:
                    return
                self._loads[key] = _Load(asyncio.create_task(self._load(key)))
            for waiter in [waiter for waiter in self._waiting if waiter.key == key]:
                self._waiting.remove(waiter)
                self._loads[key].num_users += 1
                waiter.entered.set()

    async def _load(self, key: str) -> Hold:
        hold = await self._cache.hold(key, self._readers)
        self._landings.add(landing := asyncio.create_task(self._land(hold)))
        landing.add_done_callback(self._landings.discard)
        return hold

    async def _land(self, hold: Hold) -> None:
        """Admit the next waiter once a tier keeps a model."""
        with suppress(Exception):  # its users raise it
            await hold.landed()
        self._admit()

    def _leave(self, key: str) -> None:
        load = self._loads[key]
        load.num_users -= 1
        if load.hold.done():
            self._end(key, load)
        elif not load.num_users:  # a read cannot be stopped, and takes its room until it ends
            load.hold.add_done_callback(lambda _: self._end(key, load))

    def _end(self, key: str, load: _Load) -> None:
        if load.num_users or self._loads.get(key) is not load:
            return
        del self._loads[key]
        if not load.hold.cancelled() and load.hold.exception() is None:
            load.hold.result().release()
        self._admit()
