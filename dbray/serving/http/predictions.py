"""Asynchronous requests: put under an id of the caller's choice, looked up later, cancelled.

One replica keeps them all, in memory, for an hour, or until their images are more than `MAX_BYTES`
over all tenants: then the oldest go of who has the most. Whoever finds one lost (404) puts it
again, and with a seed gets the same images. Putting the same request twice is one request, unless
the first failed in a way that may pass.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Literal

from dbray.serving.http.replicas import as_models
from dbray.serving.http.wire import GenerationRequest
from dbray.serving.messages import BROKEN, Answer, Ask, Refusal

_log = logging.getLogger(__name__)

KEEP_SECONDS = 3600.0
MAX_BYTES = 256 * 2**20
MAX_PREDICTIONS = 10_000

Status = Literal["processing", "succeeded", "failed", "canceled"]

CONFLICT = Refusal(409, "id_in_use", "Another request was put under this id.")
FULL = Refusal(503, "overloaded", "Too many predictions are kept; try again later.", retry_after=5)


@dataclass
class Outcome:
    """What became of a prediction so far."""

    status: Status
    created: int
    ask: Ask
    request: GenerationRequest
    result: Answer | Refusal | None = None


@dataclass
class _Kept:
    outcome: Outcome
    digest: str
    ends: float
    task: asyncio.Task[None] | None = field(default=None)

    @property
    def is_over(self) -> bool:
        return self.outcome.status != "processing"

    @property
    def size_bytes(self) -> int:
        result = self.outcome.result
        return sum(map(len, result.images)) if isinstance(result, Answer) else 0


class Predictions:
    """The predictions of all tenants, each seen by its own only."""

    def __init__(self, models: object, clock: Callable[[], float] = time.monotonic) -> None:
        self._models = as_models(models)
        self._clock = clock
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()

    async def known(self, tenant: str, name: str, digest: str) -> Outcome | Refusal | None:
        """What was begun with the same request; None if it is to be begun.

        Also one that failed in passing is to be begun again.
        """
        self._make_room()
        kept = self._kept.get((tenant, name))
        if kept is None:
            return None
        if kept.digest != digest:
            return CONFLICT
        result = kept.outcome.result
        has_passed = isinstance(result, Refusal) and result.retry_after is not None
        return None if has_passed else kept.outcome

    async def put(
        self, name: str, digest: str, ask: Ask, request: GenerationRequest
    ) -> Outcome | Refusal:
        """Begin a prediction, or return the one that was begun with the same request."""
        known = await self.known(ask.tenant, name, digest)
        if known is not None:
            return known
        self._kept.pop((ask.tenant, name), None)
        if len(self._kept) >= MAX_PREDICTIONS:
            return FULL
        outcome = Outcome("processing", int(time.time()), ask, request)
        kept = _Kept(outcome, digest, self._clock() + KEEP_SECONDS)
        self._kept[ask.tenant, name] = kept
        kept.task = asyncio.create_task(self._run(kept))
        return outcome

    async def get(self, tenant: str, name: str) -> Outcome | None:
        """Look one up."""
        self._make_room()
        kept = self._kept.get((tenant, name))
        return kept.outcome if kept else None

    async def cancel(self, tenant: str, name: str) -> Outcome | None:
        """Stop one that runs; one that has ended is forgotten."""
        kept = self._kept.get((tenant, name))
        if kept is None:
            return None
        if not kept.is_over and kept.task:
            kept.outcome.status = "canceled"
            kept.task.cancel()
        else:
            del self._kept[tenant, name]
        return kept.outcome

    async def num_running(self) -> int:
        """How many are not over."""
        return sum(not kept.is_over for kept in self._kept.values())

    async def forget(self, keys: Collection[str]) -> None:
        """Drop the predictions of revisions that were taken down, with their images."""
        for name, kept in list(self._kept.items()):
            if kept.outcome.ask.key in keys:
                del self._kept[name]
                if kept.task:
                    kept.task.cancel()

    async def _run(self, kept: _Kept) -> None:
        outcome = kept.outcome
        result: Answer | Refusal = BROKEN
        try:
            result = await self._models.generate(outcome.ask)
        except Exception as exc:  # noqa: BLE001 - it must not stay "processing"
            _log.error("a prediction failed: %s", type(exc).__name__)
        finally:
            if outcome.status == "processing":
                outcome.result = result
                outcome.status = "failed" if isinstance(result, Refusal) else "succeeded"

    def _make_room(self) -> None:
        """Forget what is too old and, while it is too much, the oldest of who has the most."""
        for name, kept in list(self._kept.items()):
            if kept.is_over and self._clock() > kept.ends:
                del self._kept[name]
        while self._is_full() and (over := [name for name, k in self._kept.items() if k.is_over]):
            shares = defaultdict[str, float](float)
            for (tenant, _), kept in self._kept.items():
                shares[tenant] += kept.size_bytes / MAX_BYTES + 1 / MAX_PREDICTIONS
            del self._kept[max(over, key=lambda name: shares[name[0]])]

    def _is_full(self) -> bool:
        total = sum(kept.size_bytes for kept in self._kept.values())
        return total > MAX_BYTES or len(self._kept) >= MAX_PREDICTIONS
