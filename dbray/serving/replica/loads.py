"""What is loaded ahead of its turn: so many models at once, those first that are served first.

Owns the bound on the models that are in use beside what the cache keeps; without it, everything
that is asked for would be in memory as soon as it is asked for. For one event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass

from dbray.serving.replica.cache import Lease, TieredCache
from dbray.serving.replica.fair_queue import Turn


@dataclass(eq=False)
class _Load:
    """A model on its way or in use: one lease for all its users."""

    lease: asyncio.Task[Lease]
    num_users: int = 0


@dataclass(eq=False)
class _Waiter:
    key: str
    turn: Callable[[], Turn]
    entered: asyncio.Event


class Loads:
    """Leases of a cache, of which only so many need memory beyond that of its tiers."""

    def __init__(self, cache: TieredCache, readers: Executor, count: int) -> None:
        self._cache = cache
        self._readers = readers
        self._count = count
        self._loads: dict[str, _Load] = {}
        self._waiting: list[_Waiter] = []

    @asynccontextmanager
    async def using(self, key: str, turn: Callable[[], Turn]) -> AsyncGenerator[Lease]:
        """Lease for a block: at once what a tier holds, else when there is room for one more.

        The room goes to the lowest `turn`, asked when it is given. Raises like `lease_soon`.
        """
        lease = self._cache.lease_held(key)
        if lease is not None:
            try:
                yield lease
            finally:
                lease.release()
            return
        await self._enter(key, turn)
        try:
            # Shielded: the others who use it still wait for it.
            yield await asyncio.shield(self._loads[key].lease)
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
        """Let in who is next, together with all who wait for the same model.

        Who comes later for a model that is in use waits too: else one that is asked for all the
        time would never make room.
        """
        while self._waiting:
            key = min(self._waiting, key=lambda waiter: waiter.turn()).key
            if key not in self._loads:
                if len(self._loads) >= self._count:
                    return
                lease = self._cache.lease_soon(key, self._readers)
                self._loads[key] = _Load(asyncio.create_task(lease))
            for waiter in [waiter for waiter in self._waiting if waiter.key == key]:
                self._waiting.remove(waiter)
                self._loads[key].num_users += 1
                waiter.entered.set()

    def _leave(self, key: str) -> None:
        load = self._loads[key]
        load.num_users -= 1
        if load.lease.done():
            self._end(key, load)
        elif not load.num_users:  # what is read cannot be stopped: its room is taken until then
            load.lease.add_done_callback(lambda _: self._end(key, load))

    def _end(self, key: str, load: _Load) -> None:
        if load.num_users or self._loads.get(key) is not load:
            return
        del self._loads[key]
        if not load.lease.cancelled() and load.lease.exception() is None:
            load.lease.result().release()
        self._admit()
