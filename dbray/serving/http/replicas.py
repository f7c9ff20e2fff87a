"""The replicas behind a Ray Serve handle: routed by subject, retried if one dies or is full.

A request contains its seeds, so another replica makes the same images.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import aclosing
from typing import Any

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from dbray.serving.messages import (
    BROKEN,
    LOST,
    NOT_READY,
    OVERLOADED,
    TIMED_OUT,
    Answer,
    Ask,
    Event,
    Refusal,
    Refused,
)

_log = logging.getLogger(__name__)

_TRIES = 3
_READY_SECONDS = 5.0
_FORGET_SECONDS = 60.0
_GRACE_SECONDS = 5.0


class Replicas:
    """The model deployment, through its handle."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def generate(self, ask: Ask) -> Answer | Refusal:
        """All images of a request."""
        ends = time.monotonic() + ask.deadline_seconds

        answer = await _generate(self._for(ask.subject), ask, ends)
        if _may_pass_on(ask, answer):
            answer = await _generate(self._handle, ask, ends)
        return answer

    async def stream(self, ask: Ask) -> AsyncGenerator[Event]:
        """Events of a request."""
        ends = time.monotonic() + ask.deadline_seconds
        home = _events(self._for(ask.subject), ask, ends)
        async with aclosing(home):
            first = await anext(home)
            if not _may_pass_on(ask, first):
                yield first
                async for event in home:
                    yield event
                return
        async with aclosing(_events(self._handle, ask, ends)) as elsewhere:
            async for event in elsewhere:
                yield event

    async def warm(
        self, subject: str, revision: str, deadline_seconds: float
    ) -> tuple[str, float] | Refusal:
        """Load weights, where requests for them will go."""
        handle = self._for(subject)
        ends = time.monotonic() + deadline_seconds
        return await _persist(lambda: handle.warm.remote(subject, revision), ends)

    async def forget(self, keys: Collection[str]) -> None:
        """Drop revisions from all replicas; one that does not answer drops them in its next sweep.

        Replicas that start later do not have them.
        """
        try:
            asked = self._handle.broadcast("forget", list(keys))
            results = await asked.results_async(timeout_s=_FORGET_SECONDS, return_exceptions=True)
        except DeploymentUnavailableError:
            return  # scaled to zero: nothing is loaded
        except TimeoutError as exc:  # such as a device that is busy with one large batch
            results = [exc]
        # A replica that died holds nothing.
        failures = [result for result in results if isinstance(result, Exception)]
        if any(not isinstance(failure, RayActorError) for failure in failures):
            _log.error("a takedown has not reached every replica yet")

    async def ready(self) -> dict[str, Any]:
        """What is loaded. Raises Refused while no replica can serve.

        Calls only running replicas, so that a probe starts none.
        """
        try:
            asked = self._handle.broadcast("ready")
            answers = await asked.results_async(timeout_s=_READY_SECONDS, return_exceptions=True)
            return next(answer for answer in answers if isinstance(answer, dict))
        except (StopIteration, TimeoutError, DeploymentUnavailableError) as exc:
            raise Refused(NOT_READY) from exc

    def _for(self, subject: str) -> DeploymentHandle:
        """A handle for a subject's replica; any replica can serve the base."""
        return self._handle.options(multiplexed_model_id=subject) if subject else self._handle


def _may_pass_on(ask: Ask, answer: object) -> bool:
    """Whether another replica may have room: without a model id, Serve chooses the least loaded."""
    refused = isinstance(answer, Refusal) and answer.code == OVERLOADED.code
    return refused and bool(ask.subject)


async def _generate(handle: DeploymentHandle, ask: Ask, ends: float) -> Answer | Refusal:
    return await _persist(lambda: handle.generate.remote(ask.within(ends - time.monotonic())), ends)


async def _persist(call: Callable[[], Any], ends: float) -> Any:
    """Await a call, and repeat it if the replica dies. Cancelling this cancels the work too."""
    refusal = LOST
    for _ in range(_TRIES):
        response = call()
        try:
            async with asyncio.timeout(_remaining(ends)):
                return await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        except Exception as exc:  # noqa: BLE001 - translated, every one
            response.cancel()
            refusal = _refusal_of(exc)
            if refusal is not LOST:
                break
    return refusal


async def _events(handle: DeploymentHandle, ask: Ask, ends: float) -> AsyncGenerator[Event]:
    """Events of a replica; of another one if it dies before the first event."""
    streaming = handle.options(stream=True)
    for attempt in range(_TRIES):
        begun, over = False, False
        events: Any = streaming.stream.remote(ask.within(ends - time.monotonic()))
        try:
            while (event := await _next(events, ends)) is not None:
                begun = True
                yield event
            over = True
            return
        except Exception as exc:  # noqa: BLE001 - translated, every one
            refusal = _refusal_of(exc)
            if begun or refusal is not LOST or attempt + 1 == _TRIES:
                yield refusal
                return
        finally:
            if not over:
                events.cancel()


async def _next(events: Any, ends: float) -> Event | None:
    try:
        # Around one event, not all: another task may await the next one.
        async with asyncio.timeout(_remaining(ends)):
            return await anext(events)
    except StopAsyncIteration:
        return None


def _remaining(ends: float) -> float:
    """Time for an answer. Replicas enforce the deadline, except those that hang."""
    return max(0.0, ends - time.monotonic()) + _GRACE_SECONDS


def _refusal_of(exc: Exception) -> Refusal:
    if isinstance(exc, RayActorError):
        return LOST
    if isinstance(exc, BackPressureError):
        return OVERLOADED
    if isinstance(exc, DeploymentUnavailableError):
        return NOT_READY
    if isinstance(exc, asyncio.TimeoutError):
        return TIMED_OUT
    cause = exc.cause if isinstance(exc, RayTaskError) else exc
    _log.error("a replica failed: %s", type(cause).__name__)
    return BROKEN
