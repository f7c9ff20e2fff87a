"""What the HTTP routes do, apart from HTTP: who may, which model, which replica, how often again.

Knows Ray only through `Models`, so that all of it can be tested without.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from dbray.errors import RegistryError, StoreError
from dbray.records.models import ModelRecord
from dbray.serving.http.catalogue import Catalogue
from dbray.serving.http.predictions import Outcome
from dbray.serving.http.tenants import Gate, Key
from dbray.serving.http.wire import GenerationRequest, parse_size
from dbray.serving.messages import BASE, Answer, Ask, Event, Refusal, Refused
from dbray.serving.options import ServeOptions
from dbray.spec.prompts import fill_prompt

# A model that is not there and one that is somebody else's answer at the same time after the
# request: the next multiple of this.
_QUANTUM_SECONDS = 0.05
_SEEDS = 2**63

DRAINING = Refusal(503, "draining", "The server is going down.", retry_after=2)
NAMES_NEITHER = "the prompt names neither {subject} nor the model's identifier"


class Models(Protocol):
    """The replicas, as the service sees them."""

    async def generate(self, ask: Ask) -> Answer | Refusal:
        """All images of a request."""
        ...

    def stream(self, ask: Ask) -> AsyncGenerator[Event]:
        """Events of a request."""
        ...

    async def warm(
        self, subject: str, revision: str, deadline_seconds: float
    ) -> tuple[str, float] | Refusal:
        """Load weights."""
        ...

    async def forget(self, keys: Collection[str]) -> None:
        """Drop revisions from all replicas."""
        ...

    async def ready(self) -> dict[str, Any]:
        """Raises Refused while no replica can serve."""
        ...


class PredictionStore(Protocol):
    """Where predictions are kept, as the routes see it."""

    async def put(
        self, name: str, digest: str, ask: Ask, request: GenerationRequest
    ) -> Outcome | Refusal:
        """Begin a prediction."""
        ...

    async def known(self, tenant: str, name: str, digest: str) -> Outcome | Refusal | None:
        """What was begun with the same request; None if it is to be begun."""
        ...

    async def get(self, tenant: str, name: str) -> Outcome | None:
        """Look one up."""
        ...

    async def cancel(self, tenant: str, name: str) -> Outcome | None:
        """Stop or forget one."""
        ...

    async def forget(self, keys: Collection[str]) -> None:
        """Drop those of revisions that were taken down."""
        ...


@dataclass
class Prepared:
    """A request that may be served: what to ask the replicas, and headers of the answer."""

    request: GenerationRequest
    ask: Ask
    headers: dict[str, str] = field(default_factory=dict)


class Service:
    """The operations behind the routes."""

    def __init__(
        self, options: ServeOptions, catalogue: Catalogue, gate: Gate, models: Models
    ) -> None:
        self.options = options
        self.catalogue = catalogue
        self.gate = gate
        self.models = models
        self.draining = False
        # Apart, and one at a time: a slow listing must not take the threads that look for a model.
        self._lister = ThreadPoolExecutor(1, "lister")

    async def find(self, key: Key, model: str) -> ModelRecord:
        """Find a model for a tenant. Raises Refused, alike for unknown and foreign ones."""
        started = time.monotonic()
        record = await asyncio.to_thread(self.catalogue.find, model)
        if record is None or not key.sees(record.tenant):
            spent = time.monotonic() - started
            await asyncio.sleep(_QUANTUM_SECONDS - spent % _QUANTUM_SECONDS)
            raise Refused(not_found(model))
        return record

    async def visible(self, key: Key) -> list[ModelRecord]:
        """All models that exist for a tenant."""
        loop = asyncio.get_running_loop()
        records = await loop.run_in_executor(self._lister, self.catalogue.models)
        return [record for record in records if key.sees(record.tenant)]

    @contextmanager
    def charged(self, key: Key, num_images: int) -> Iterator[None]:
        """Count images against a tenant's rate, unless the block ends in a 503: then none is made.

        Begins before the model is looked for, so that guessing names is not free.
        """
        if self.draining:
            raise Refused(DRAINING)
        self.gate.charge(key, num_images)
        try:
            yield
        except (Refused, StoreError) as exc:
            if not isinstance(exc, Refused) or exc.refusal.status == 503:
                self.gate.refund(key, num_images)
            raise

    def check(self, request: GenerationRequest) -> None:
        """Check what can be checked without the model. Raises Refused."""
        size = parse_size(request.size)
        if isinstance(size, Refusal):
            raise Refused(size)
        steps = request.num_inference_steps
        if steps is not None and steps > self.options.max_steps:
            raise Refused(Refusal(
                400, "invalid_value",
                f"Invalid 'num_inference_steps': at most {self.options.max_steps}.",
                "num_inference_steps",
            ))  # fmt: skip

    async def prepare(self, key: Key, request: GenerationRequest) -> Prepared:
        """Find the model of a request that was checked. Raises Refused."""
        record = None if request.model == BASE else await self.find(key, request.model)
        size = parse_size(request.size)
        assert not isinstance(size, Refusal)
        width, height = size or (None, None)
        first = secrets.randbelow(_SEEDS) if request.seed is None else request.seed
        ask = Ask(
            subject=record.id if record else "",
            revision=record.revision if record else "",
            tenant=key.tenant,
            prompt=_fill(request.prompt, record),
            seeds=tuple((first + index) % _SEEDS for index in range(request.n)),
            deadline_seconds=self.options.deadline_seconds,
            negative_prompt=_fill(request.negative_prompt, record),
            sampler=request.scheduler,
            steps=request.num_inference_steps,
            guidance=request.guidance_scale,
            resolution=record.recipe.resolution if record else None,
            width=width,
            height=height,
            output_format=request.output_format,
            quality=request.output_compression,
            partial_images=request.partial_images if request.stream else 0,
        )
        headers = {"x-dbray-model": ask.key}
        if record and not _names_subject(request.prompt, record):
            headers["x-dbray-warning"] = NAMES_NEITHER
        return Prepared(request, ask, headers)

    async def readiness(self) -> dict[str, Any]:
        """Say what is ready. Raises Refused when nothing is, or soon will not be."""
        if self.draining:
            raise Refused(DRAINING)
        try:
            return {"status": "ok", **await self.models.ready()}
        except Refused:
            if self.options.min_replicas == 0:
                return {"status": "ok", "replicas": "start on demand"}
            raise

    async def take_down(self, key: Key, model: str) -> list[str]:
        """Remove a model from the registry; it is still held by replicas.

        Returns the revisions that are gone, as 'id@revision'.
        """
        record = await self.find(key, model)
        if not key.owns(record.tenant):
            raise Refused(Refusal(403, "not_yours", "The model belongs to all; you may not."))
        try:
            return await asyncio.to_thread(self.catalogue.remove, model)
        except RegistryError as exc:  # somebody else took it down meanwhile
            raise Refused(not_found(model)) from exc


def not_found(model: str) -> Refusal:
    """What an unknown and a foreign model answer."""
    return Refusal(
        404, "model_not_found", f"The model '{model}' does not exist or is not yours.", "model"
    )


def _fill(prompt: str, record: ModelRecord | None) -> str:
    if record:
        return fill_prompt(prompt, record.class_noun, record.identifier)
    if "{subject}" in prompt or "{class}" in prompt:
        raise Refused(Refusal(
            400, "invalid_value", "The base has no {subject}: write a class noun.", "prompt"
        ))  # fmt: skip
    return prompt


def _names_subject(prompt: str, record: ModelRecord) -> bool:
    words = prompt.casefold().split()
    wanted = record.identifier.casefold().split()
    spans = (words[start : start + len(wanted)] for start in range(len(words)))
    return "{subject}" in prompt or wanted in [[w.strip(",.;:!?\"'") for w in s] for s in spans]
