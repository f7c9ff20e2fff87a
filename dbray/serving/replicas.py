"""The replicas behind a Ray Serve handle: routed by subject, tried again when one dies.

A request carries its seeds, so trying it again elsewhere gives the same images.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from dbray.serving.messages import (
    BROKEN,
    OVERLOADED,
    TIMED_OUT,
    Answer,
    Ask,
    Event,
    Refusal,
    Refused,
)

T = TypeVar("T")

_log = logging.getLogger(__name__)

_TRIES = 3
_READY_SECONDS = 5.0
_LOST = Refusal(503, "replica_lost", "The replica died; try again.", retry_after=1)
_NONE = Refusal(503, "not_ready", "No replica is ready yet; try again.", retry_after=2)


class Replicas:
    """Fulfils `service.Models` through a handle of the model deployment."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def generate(self, ask: Ask) -> Answer | Refusal:
        """All images of a request."""
        ends = time.monotonic() + ask.deadline_seconds
        handle = self._for(ask.subject)

        def call() -> Awaitable[Answer | Refusal]:
            return handle.generate.remote(ask.within(ends - time.monotonic()))

        return await _persist(call, ends)

    async def stream(self, ask: Ask) -> AsyncGenerator[Event]:
        """Events of a request. A replica that dies before the first is replaced by another."""
        ends = time.monotonic() + ask.deadline_seconds
        handle = self._for(ask.subject).options(stream=True)
        for attempt in range(_TRIES):
            begun = False
            try:
                events: Any = handle.stream.remote(ask.within(ends - time.monotonic()))
                async for event in events:
                    begun = True
                    yield event
                return
            except Exception as exc:  # noqa: BLE001 - translated, every one
                refusal = _refusal_of(exc)
                if begun or refusal is not _LOST or attempt + 1 == _TRIES:
                    yield refusal
                    return

    async def warm(self, subject: str, revision: str) -> tuple[str, float] | Refusal:
        """Load weights, where requests for them will go."""
        handle = self._for(subject)
        return await _persist(lambda: handle.warm.remote(subject, revision), time.monotonic() + 60)

    async def forget(self, subject: str) -> None:
        """Drop a subject from all replicas. Those that start later never had it."""
        try:
            asked = self._handle.broadcast("forget", subject)
            results = await asked.results_async(timeout_s=60, return_exceptions=True)
        except DeploymentUnavailableError:
            return  # scaled to zero: nothing is held
        # One that died meanwhile holds nothing; others drop it at their next sweep.
        failures = [result for result in results if isinstance(result, Exception)]
        if any(not isinstance(failure, RayActorError) for failure in failures):
            _log.error("a takedown has not reached every replica yet")

    async def ready(self) -> dict[str, Any]:
        """What is loaded. Raises Refused while no replica can serve.

        Asks the replicas that are there, so that a probe wakes none.
        """
        try:
            asked = self._handle.broadcast("ready")
            answers = await asked.results_async(timeout_s=_READY_SECONDS, return_exceptions=True)
            return next(answer for answer in answers if isinstance(answer, dict))
        except (StopIteration, TimeoutError, DeploymentUnavailableError) as exc:
            raise Refused(_NONE) from exc

    def _for(self, subject: str) -> DeploymentHandle:
        """The base needs no loading, so any replica will do."""
        return self._handle.options(multiplexed_model_id=subject) if subject else self._handle


def as_models(models: Any) -> Any:
    """Wrap a handle; anything else fulfils `service.Models` already."""
    return Replicas(models) if isinstance(models, DeploymentHandle) else models


async def _persist(call: Callable[[], Awaitable[T | Refusal]], ends: float) -> T | Refusal:
    """Await a call; call again when the replica died."""
    refusal = _LOST
    for _ in range(_TRIES):
        try:
            return await asyncio.wait_for(_awaited(call()), max(0.0, ends - time.monotonic()) + 5)
        except Exception as exc:  # noqa: BLE001 - translated, every one
            refusal = _refusal_of(exc)
            if refusal is not _LOST:
                break
    return refusal


async def _awaited(response: Awaitable[T]) -> T:
    return await response


def _refusal_of(exc: Exception) -> Refusal:
    if isinstance(exc, RayActorError):
        return _LOST
    if isinstance(exc, BackPressureError):
        return OVERLOADED
    if isinstance(exc, DeploymentUnavailableError):
        return _NONE
    if isinstance(exc, asyncio.TimeoutError):
        return TIMED_OUT
    cause = exc.cause if isinstance(exc, RayTaskError) else exc
    _log.error("a replica failed: %s", type(cause).__name__)
    return BROKEN
