"""The HTTP ingress as a Ray Serve deployment: one or several replicas, without torch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

from ray import serve
from ray.serve.handle import DeploymentHandle

from dbray.serving.http.access.guard import Guard
from dbray.serving.http.access.tenants import Gate
from dbray.serving.http.api import create_api
from dbray.serving.http.catalogue import Catalogue
from dbray.serving.http.predictions import Predictions
from dbray.serving.http.replicas import Replicas
from dbray.serving.http.service import Service
from dbray.serving.meters import RequestMeters
from dbray.serving.options import ServeOptions

_log = logging.getLogger(__name__)

OPEN_WARNING = (
    "no keys are configured: every process on this machine has full access; add a key file before "
    "a proxy forwards the requests of others to this server"
)


class _Remote:
    """The methods of a deployment, called through its handle."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name).remote


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
        """Called once by Ray Serve, in the replica."""
        predictions = cast(Predictions, _Remote(self._predictions))
        self._guard = guarded(self._service, predictions)
        return self._guard

    async def drain(self) -> int:
        """Refuse new requests for images; return how many requests are still being answered."""
        self._service.draining = True
        running = await self._predictions.num_running.remote()
        return running + (self._guard.num_requests if self._guard else 0)


def guarded(service: Service, predictions: Predictions) -> Guard:
    """The whole application."""
    return Guard(
        create_api(service, predictions),
        max_body_bytes=service.options.max_body_kib * 1024,
        is_open=service.gate.is_open,
        on_answer=RequestMeters().answered,
    )
