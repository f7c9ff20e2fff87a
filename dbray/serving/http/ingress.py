"""The HTTP ingress as a Ray Serve deployment: thin, without torch, one or several."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from dbray.serving.http.api import create_api
from dbray.serving.http.catalogue import Catalogue
from dbray.serving.http.guard import Guard
from dbray.serving.http.predictions import Outcome
from dbray.serving.http.replicas import Replicas
from dbray.serving.http.service import Service
from dbray.serving.http.tenants import Gate
from dbray.serving.http.wire import GenerationRequest
from dbray.serving.messages import Ask, Refusal
from dbray.serving.meters import RequestMeters
from dbray.serving.options import ServeOptions

_log = logging.getLogger(__name__)

OPEN_WARNING = (
    "no keys are configured: access is open to this machine, with every right; give a key file "
    "before anything forwards requests of others here"
)


class PredictionHandle:
    """The prediction store behind a Ray Serve handle."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def put(
        self, name: str, digest: str, ask: Ask, request: GenerationRequest
    ) -> Outcome | Refusal:
        """Begin a prediction."""
        return await self._handle.put.remote(name, digest, ask, request)

    async def known(self, tenant: str, name: str, digest: str) -> Outcome | Refusal | None:
        """What was begun with the same request."""
        return await self._handle.known.remote(tenant, name, digest)

    async def get(self, tenant: str, name: str) -> Outcome | None:
        """Look one up."""
        return await self._handle.get.remote(tenant, name)

    async def cancel(self, tenant: str, name: str) -> Outcome | None:
        """Stop or forget one."""
        return await self._handle.cancel.remote(tenant, name)

    async def forget(self, keys: Collection[str]) -> None:
        """Drop those of revisions that were taken down."""
        await self._handle.forget.remote(list(keys))


@serve.ingress()
class Ingress:
    """Builds the application around handles of the other deployments."""

    def __init__(
        self, options: ServeOptions, models: DeploymentHandle, predictions: DeploymentHandle
    ) -> None:
        gate = Gate(Path(options.keys) if options.keys else None, 1 / options.num_ingress)
        if gate.is_open:
            _log.warning(OPEN_WARNING)
        catalogue = Catalogue(options.registry, options.fresh_seconds)
        self._service = Service(options, catalogue, gate, Replicas(models))
        self._predictions = predictions
        self._guard: Guard | None = None

    def __serve_build_asgi_app__(self) -> Guard:
        """Called by Ray Serve, once, in the replica."""
        self._guard = guarded(self._service, PredictionHandle(self._predictions))
        return self._guard

    async def drain(self) -> int:
        """Refuse new images from now on; returns how many requests are still being answered."""
        self._service.draining = True
        running = await self._predictions.num_running.remote()
        return running + (self._guard.num_requests if self._guard else 0)


def guarded(service: Service, predictions: PredictionHandle) -> Guard:
    """The whole application."""
    options, api = service.options, create_api(service, predictions)
    assert isinstance(api, FastAPI)
    return Guard(
        api,
        max_body_bytes=options.max_body_kib * 1024,
        max_requests=options.max_requests,
        is_open=service.gate.is_open,
        on_answer=RequestMeters().answered,
    )
