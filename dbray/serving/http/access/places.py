"""Limits of requests in flight: unfinished bodies, and places for requests that were read.

A body that is still arriving takes no place, so that callers who never finish theirs delay nobody.
It has a time limit; each tenant has a number of unfinished bodies, beyond which the oldest ends.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Awaitable
from typing import TypeVar

from dbray.serving.messages import OVERLOADED, Refusal, Refused

T = TypeVar("T")

PAUSE_SECONDS = 5.0
"""How long a body that ended for a newer one waits for its answer: a client that opens the next at
once would keep proxy and ingress busy with nothing else."""

TOO_SLOW = Refusal(408, "body_timeout", "The body did not arrive in time.", retry_after=1)
TOO_MANY = Refusal(
    429, "too_many_requests", "Too many of your requests are in flight.", retry_after=1
)


class Bodies:
    """Reads bodies within a time limit, and within a number of unfinished ones per tenant."""

    def __init__(
        self, seconds: float, most_per_tenant: int, pause_seconds: float = PAUSE_SECONDS
    ) -> None:
        self._seconds = seconds
        self._most = most_per_tenant
        self._pause_seconds = pause_seconds
        self._limits: defaultdict[str, OrderedDict[asyncio.Timeout, None]]
        self._limits = defaultdict(OrderedDict)

    async def read(self, tenant: str, body: Awaitable[T]) -> T:
        """Await a body. Raises Refused if it takes too long, or newer ones exceed the limit."""
        started = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._seconds) as limit:
                self._begin(tenant, limit)
                try:
                    return await body
                finally:
                    self._end(tenant, limit)
        except TimeoutError as exc:
            if asyncio.get_running_loop().time() < started + self._seconds:
                await asyncio.sleep(self._pause_seconds)
            raise Refused(TOO_SLOW) from exc

    def _begin(self, tenant: str, limit: asyncio.Timeout) -> None:
        limits = self._limits[tenant]
        if len(limits) >= self._most:
            oldest, _ = limits.popitem(last=False)
            if not oldest.expired():  # otherwise its task is about to end anyway
                oldest.reschedule(asyncio.get_running_loop().time())
        limits[limit] = None

    def _end(self, tenant: str, limit: asyncio.Timeout) -> None:
        limits = self._limits[tenant]
        limits.pop(limit, None)
        if not limits:
            del self._limits[tenant]


class Places:
    """Counts requests in flight whose bodies were read, in all and per tenant."""

    def __init__(self, most: int, share: float) -> None:
        self._most = most
        self._most_per_tenant = max(1, round(most * share))
        self._taken = Counter[str]()

    def take(self, tenant: str) -> None:
        """Take a place. Raises Refused if none is left, or the tenant has its share."""
        if self._taken[tenant] >= self._most_per_tenant:
            raise Refused(TOO_MANY)
        if self._taken.total() >= self._most:
            raise Refused(OVERLOADED)
        self._taken[tenant] += 1

    def leave(self, tenant: str) -> None:
        """Give a place back."""
        self._taken[tenant] -= 1
        if not self._taken[tenant]:
            del self._taken[tenant]
