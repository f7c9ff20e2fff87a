"""The operations of the HTTP routes: permissions, models, charges, requests to replicas.

Uses Ray only through `Replicas`, so that it can be tested without Ray.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dbray.errors import ModelDamaged, RegistryError, StoreError
from dbray.records.models import ModelRecord
from dbray.scores.values import ScoreName
from dbray.serving.http import sums
from dbray.serving.http.access.places import Bodies, Places
from dbray.serving.http.access.tenants import Gate, Key
from dbray.serving.http.catalogue import Catalogue, Listed
from dbray.serving.http.replicas import Replicas
from dbray.serving.http.wire import GenerationRequest
from dbray.serving.messages import UNUSABLE, Ask, Begun, Refusal, Refused, Share
from dbray.serving.options import ServeOptions
from dbray.spec.prompts import fill_prompt, named_until

# Unknown and foreign models are refused after the same time: the next multiple of this.
_QUANTUM_SECONDS = 0.05
_SEEDS = 2**63

DRAINING = Refusal(503, "draining", "The server is shutting down.", retry_after=2)
NAMES_NEITHER = "the prompt names neither {subject} nor the model's identifier"


@dataclass(frozen=True)
class Prepared:
    """A request that may be served: the request to replicas, and warnings for the caller."""

    request: GenerationRequest
    ask: Ask
    warnings: tuple[str, ...]
    named_until: int = 0
    """Characters of the prompt up to the end of the subject's name, where {subject} stands."""

    def headers(self, begun: Begun | None = None) -> dict[str, str]:
        """Headers of the answer; `begun` is None before sampling has begun."""
        warnings = list(self.warnings)
        if begun and self.ask.size not in (None, (begun.width, begun.height)):
            width, height = self.ask.size or (0, 0)
            warnings.append(
                f"drawn as {begun.width}x{begun.height}: the base cannot draw {width}x{height}"
            )
        warnings += self._unread(begun) if begun else []
        headers = {"x-dbray-model": self.ask.key}
        return headers | {"x-dbray-warning": "; ".join(warnings)} if warnings else headers

    def _unread(self, begun: Begun) -> list[str]:
        """Warnings of texts that are cut off; no text is quoted, since headers are logged."""
        texts = self.ask.texts
        warnings = [
            f"the base reads the first {num_read} of {len(texts[name])} characters of {name}"
            for name, num_read in begun.read.items()
        ]
        if begun.read.get("prompt", self.named_until) < self.named_until:
            warnings.append("the subject is named in what is not read")
        return warnings


class Service:
    """The operations behind the routes."""

    def __init__(
        self, options: ServeOptions, catalogue: Catalogue, gate: Gate, models: Replicas
    ) -> None:
        self.options = options
        self.catalogue = catalogue
        self.gate = gate
        self.models = models
        self.draining = False
        self.places = Places(options.max_requests, options.tenant_share)
        self.bodies = Bodies(options.body_seconds, options.max_requests)
        # A thread of its own, so that slow listings do not block the threads that find models.
        self._lister = ThreadPoolExecutor(1, "lister")

    async def find(self, key: Key, model: str) -> ModelRecord:
        """Find a model for a tenant. Raises the same Refused for unknown and foreign models."""
        started = time.monotonic()
        try:
            record = await asyncio.to_thread(self.catalogue.find, model)
            if key.sees(record.tenant):
                return record
        except ModelDamaged as exc:
            if key.sees(self.catalogue.owner(model)):
                raise Refused(UNUSABLE) from exc
        except RegistryError:
            pass
        spent = time.monotonic() - started
        await asyncio.sleep(_QUANTUM_SECONDS - spent % _QUANTUM_SECONDS)
        raise Refused(not_found(model))

    def meant(self, model: str) -> str:
        """The model of an alias; any other name is returned unchanged."""
        return self.options.aliases.get(model, model)

    async def visible(self, key: Key) -> list[ModelRecord]:
        """All models that a tenant may use."""
        loop = asyncio.get_running_loop()
        records = await loop.run_in_executor(self._lister, self.catalogue.models)
        return [record for record in records if key.sees(record.tenant)]

    async def sorted_by(self, column: ScoreName, records: Sequence[ModelRecord]) -> list[Listed]:
        """Sort models by a score; see Catalogue."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._lister, self.catalogue.sorted_by, column, records)

    @contextmanager
    def charged(self, key: Key, num_images: int) -> Iterator[None]:
        """Count images against a tenant's rate, unless the block ends in a 503: then none is made.

        Models are looked up inside the block, so that guessing names is not free.
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
        """Check what does not depend on the model. Raises Refused."""
        if request.models and "model" in request.model_fields_set:
            raise Refused(Refusal(
                400, "invalid_value", "Invalid 'models': give either 'model' or 'models'.", "models"
            ))  # fmt: skip
        steps = request.num_inference_steps
        if steps is not None and steps > self.options.max_steps:
            raise Refused(Refusal(
                400, "invalid_value",
                f"Invalid 'num_inference_steps': at most {self.options.max_steps}.",
                "num_inference_steps",
            ))  # fmt: skip

    async def prepare(self, key: Key, request: GenerationRequest) -> Prepared:
        """Find the models of a request that was checked. Raises Refused."""
        names = sums.named(request, self.options.aliases)
        records = [await self.find(key, name) for name, _ in names]
        weights = [weight for _, weight in names]
        record = records[0] if records else None
        if records:
            sums.check(records, weights)
        first = secrets.randbelow(_SEEDS) if request.seed is None else request.seed
        sampling = request.sampling
        if request.negative_prompt:
            sampling["negative_prompt"] = _fill(request.negative_prompt, record)
        ask = Ask(
            models=tuple(
                Share(one.id, one.revision, weight)
                for one, weight in zip(records, weights, strict=True)
            ),
            tenant=key.tenant,
            prompt=_fill(request.prompt, record),
            seeds=tuple((first + index) % _SEEDS for index in range(request.n)),
            deadline_seconds=self.options.deadline_seconds,
            sampling=sampling,
            resolution=record.recipe.resolution if record else None,
            super_resolution=record.super_resolution if record else None,
            size=request.width_height,
            strict_size=request.strict_size,
            output_format=request.output_format,
            quality=request.output_compression,
            partial_images=request.partial_images if request.stream else 0,
        )
        named = named_until(request.prompt, record.class_noun, record.identifier) if record else 0
        return Prepared(request, ask, _warnings(request, records), named)

    async def readiness(self) -> dict[str, Any]:
        """Return what is ready.

        Raises:
            Refused: no replica can serve, or the server is shutting down.
            StoreError: the registry has vanished.
        """
        if self.draining:
            raise Refused(DRAINING)
        await asyncio.to_thread(self.catalogue.check)
        try:
            return {"status": "ok", **await self.models.ready()}
        except Refused:
            if self.options.min_replicas == 0:
                return {"status": "ok", "replicas": "start on demand"}
            raise

    async def take_down(self, key: Key, model: str) -> list[str]:
        """Remove a model from the registry; replicas still hold it.

        Returns the revisions that are gone, as 'id@revision'.
        """
        record = await self.find(key, model)
        if not key.owns(record.tenant):
            raise Refused(
                Refusal(
                    403,
                    "not_yours",
                    "The model belongs to everyone: only the operator's key may delete it.",
                )
            )
        try:
            return await asyncio.to_thread(self.catalogue.remove, model)
        except RegistryError as exc:  # another request took it down meanwhile
            raise Refused(not_found(model)) from exc


def not_found(model: str) -> Refusal:
    """The refusal of an unknown model and of a foreign one."""
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


def _warnings(request: GenerationRequest, records: Sequence[ModelRecord]) -> tuple[str, ...]:
    warnings = []
    if records and "{subject}" not in request.prompt and not _names(request.prompt, records[0]):
        warnings.append(NAMES_NEITHER)
    warnings += [
        f"the prompt does not name the identifier of {record.id}"
        for record in records[1:]
        if not _names(request.prompt, record)
    ]
    if request.without_effect:
        warnings.append(f"without effect here: {', '.join(request.without_effect)}")
    return tuple(warnings)


def _names(prompt: str, record: ModelRecord) -> bool:
    words = prompt.casefold().split()
    wanted = record.identifier.casefold().split()
    spans = (words[start : start + len(wanted)] for start in range(len(words)))
    return wanted in [[w.strip(",.;:!?\"'") for w in s] for s in spans]
