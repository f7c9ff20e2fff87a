"""Asynchronous requests: put under an id that the caller chooses, looked up later, cancelled.

One replica keeps all of them in memory, for an hour. Beyond `MAX_BYTES` of images, the oldest of
the tenant with the most are dropped first. A caller whose prediction was dropped (404) puts it
again; with a seed, the images are the same. The same request put twice is one request, unless the
first failed for a reason that may pass. The same replica keeps images that have URLs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Literal

from ray.serve.handle import DeploymentHandle

from dbray.serving.http.replicas import Replicas
from dbray.serving.http.shelf import Shelf
from dbray.serving.http.wire import GenerationRequest
from dbray.serving.messages import BROKEN, Answer, Ask, Refusal, names_of

_log = logging.getLogger(__name__)

KEEP_SECONDS = 3600.0
MAX_BYTES = 256 * 2**20
MAX_PREDICTIONS = 10_000

Clock = Callable[[], float]
Status = Literal["processing", "succeeded", "failed", "canceled"]

CONFLICT = Refusal(409, "id_in_use", "Another request was put under this id.")
FULL = Refusal(503, "overloaded", "Too many predictions are kept; try again later.", retry_after=5)


@dataclass
class PredictionState:
    """A prediction as it stands."""

    status: Status
    created: int
    ask: Ask
    request: GenerationRequest
    result: Answer | Refusal | None = None


@dataclass
class _Kept:
    state: PredictionState
    digest: str
    ends: float
    task: asyncio.Task[None] | None = field(default=None)

    @property
    def is_over(self) -> bool:
        return self.state.status != "processing"

    @property
    def size_bytes(self) -> int:
        result = self.state.result
        return sum(map(len, result.images)) if isinstance(result, Answer) else 0


class Predictions:
    """The predictions of all tenants; each tenant sees its own."""

    def __init__(self, models: Replicas | DeploymentHandle, clock: Clock = time.monotonic) -> None:
        self._models = Replicas(models) if isinstance(models, DeploymentHandle) else models
        self._shelf = Shelf(clock)
        self._clock = clock
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()

    async def known(self, tenant: str, name: str, digest: str) -> PredictionState | Refusal | None:
        """The prediction of the same request; None if it has to be started.

        After a failure that may pass, it is started again.
        """
        self._make_room()
        kept = self._kept.get((tenant, name))
        if kept is None:
            return None
        if kept.digest != digest:
            return CONFLICT
        result = kept.state.result
        may_retry = isinstance(result, Refusal) and result.retry_after is not None
        return None if may_retry else kept.state

    async def put(
        self, name: str, digest: str, ask: Ask, request: GenerationRequest
    ) -> PredictionState | Refusal:
        """Start a prediction, or return the one that was started by the same request."""
        known = await self.known(ask.tenant, name, digest)
        if known is not None:
            return known
        self._kept.pop((ask.tenant, name), None)
        if len(self._kept) >= MAX_PREDICTIONS:
            return FULL
        state = PredictionState("processing", int(time.time()), ask, request)
        kept = _Kept(state, digest, self._clock() + KEEP_SECONDS)
        self._kept[ask.tenant, name] = kept
        kept.task = asyncio.create_task(self._run(kept))
        return state

    async def get(self, tenant: str, name: str) -> PredictionState | None:
        """Return a prediction, if it is kept."""
        self._make_room()
        kept = self._kept.get((tenant, name))
        return kept.state if kept else None

    async def cancel(self, tenant: str, name: str) -> PredictionState | None:
        """Cancel a running prediction, or drop one that has ended."""
        kept = self._kept.get((tenant, name))
        if kept is None:
            return None
        if not kept.is_over and kept.task:
            kept.state.status = "canceled"
            kept.task.cancel()
        else:
            del self._kept[tenant, name]
        return kept.state

    async def shelve(self, ask: Ask, images: tuple[bytes, ...]) -> tuple[str, ...]:
        """Keep images that have URLs; returns their names."""
        return self._shelf.put(ask, images)

    async def image(self, name: str) -> bytes | None:
        """An image from the shelf."""
        return self._shelf.get(name)

    async def num_running(self) -> int:
        """How many predictions are running."""
        return sum(not kept.is_over for kept in self._kept.values())

    async def forget(self, keys: Collection[str]) -> None:
        """Drop the predictions and images of revisions that were taken down."""
        self._shelf.forget(keys)
        for name, kept in list(self._kept.items()):
            if not names_of(kept.state.ask.key).isdisjoint(keys):
                del self._kept[name]
                if kept.task:
                    kept.task.cancel()

    async def _run(self, kept: _Kept) -> None:
        state = kept.state
        result: Answer | Refusal = BROKEN
        try:
            result = await self._models.generate(state.ask)
            if isinstance(result, Answer) and state.request.response_format == "url":
                result = replace(result, names=self._shelf.put(state.ask, result.images))
        except Exception as exc:  # noqa: BLE001 - or it would be "processing" forever
            _log.error("a prediction failed: %s", type(exc).__name__)
        finally:
            if state.status == "processing":
                state.result = result
                state.status = "failed" if isinstance(result, Refusal) else "succeeded"

    def _make_room(self) -> None:
        """Drop what is too old, then the oldest of the tenant with the most."""
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
