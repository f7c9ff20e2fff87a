"""The HTTP routes: OpenAI's Images API and models, predictions, health, metrics, the page.

Thin: reads a request, calls the Service, writes the response (see `replies`). Paths and the schema
are in `api`.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated

from fastapi import Path, Query, Request, Response
from fastapi.responses import PlainTextResponse, StreamingResponse

from dbray.records.models import ModelRecord
from dbray.scores.values import ScoreName
from dbray.serving import meters
from dbray.serving.http import answers, playground, replies, wire
from dbray.serving.http.access.guard import ON_END
from dbray.serving.http.access.tenants import Key, Scope
from dbray.serving.http.catalogue import Listed
from dbray.serving.http.predictions import Predictions, PredictionState
from dbray.serving.http.service import Prepared, Service
from dbray.serving.messages import BASE, NOT_FOUND, Begun, Event, Refusal, Refused, unless_refused

_NO_PREDICTION = Refusal(404, "prediction_not_found", "The prediction does not exist.", "name")
_NO_IMAGE = Refusal(404, "image_not_found", "The image does not exist, or has expired.", "name")

PredictionName = Annotated[str, Path(pattern=wire.PREDICTION_PATTERN)]
Sort = Annotated[ScoreName | None, Query(description="By a score, the best first; absent: by id.")]
Limit = Annotated[int | None, Query(ge=1, le=wire.MAX_LIST, description="Absent: all.")]


class Routes:
    """One method per route."""

    def __init__(self, service: Service, predictions: Predictions) -> None:
        self._service = service
        self._predictions = predictions

    async def create_images(self, request: Request) -> Response:
        """Sample images of a subject, or of the base."""
        key, parsed = await self._parsed(request)
        with self._service.charged(key, parsed.n):
            prepared = await self._service.prepare(key, parsed)
            if parsed.stream:
                return await self._streamed(prepared)
            answer = unless_refused(await self._service.models.generate(prepared.ask))
        if parsed.response_format == "url":
            names = await self._predictions.shelve(prepared.ask, answer.images)
            answer = replace(answer, names=names)
        return replies.dumped(
            replies.images(parsed, prepared.ask, answer, self._address(request)),
            headers=prepared.headers(answer.begun) | replies.timing(answer.begun),
        )

    async def get_image(self, name: str) -> Response:
        """An image that was requested as a URL; whoever has its name may read it."""
        content = await self._predictions.image(name)
        if content is None:
            raise Refused(_NO_IMAGE)
        return replies.image_file(name, content)

    async def _parsed(self, request: Request) -> tuple[Key, wire.GenerationRequest]:
        key = self._admit(request, "generate")
        body = await self._service.bodies.read(key.tenant, request.body())
        self._enter(request, key)
        parsed = wire.parse_request(body)
        self._service.check(parsed)
        return key, parsed

    async def _streamed(self, prepared: Prepared) -> Response:
        events = self._service.models.stream(prepared.ask)
        # The first event decides the status.
        first = unless_refused(await anext(events))
        assert isinstance(first, Begun)
        headers = prepared.headers(first) | replies.timing(first)
        headers["x-accel-buffering"] = "no"
        return StreamingResponse(
            _sse(events, prepared, first), media_type="text/event-stream", headers=headers
        )

    async def list_models(
        self,
        request: Request,
        limit: Limit = None,
        after: str = "",
        contains: str = "",
        sort: Sort = None,
    ) -> Response:
        """List the models that the caller may use; `contains`: in the id or class noun.

        `after` is the id of the last model of the page before, in the same order.
        """
        key, wanted = self._entered(request), contains.strip().casefold()
        matching = [
            record
            for record in await self._service.visible(key)
            if wanted in f"{record.id} {record.class_noun}".casefold()
        ]
        listed = await self._service.sorted_by(sort, matching) if sort else _by_id(matching)
        rest = _after(after, listed, is_sorted=sort is not None)
        shown = rest[:limit]
        data = [replies.model(record, scores=scores) for record, scores in shown]
        if not after and wanted in BASE:
            data.insert(0, replies.base_model(self._service.options.base))
        return replies.dumped(answers.ModelList(data=data, has_more=len(shown) < len(rest)))

    async def get_model(self, request: Request, model: str) -> Response:
        """Describe one model."""
        key, model = self._entered(request), self._service.meant(model)
        if model == BASE:
            return replies.dumped(replies.base_model(self._service.options.base))
        record, catalogue = await self._service.find(key, _checked(model)), self._service.catalogue
        names = await asyncio.to_thread(catalogue.previews, record)
        prompts = await asyncio.to_thread(catalogue.preview_prompts, record) if names else []
        scores = await asyncio.to_thread(catalogue.scores, record)
        return replies.dumped(replies.model(record, names, prompts, scores))

    async def get_preview(self, request: Request, model: str, name: str) -> Response:
        """One file of a model's previews: an image."""
        record = await self._service.find(self._entered(request), _checked(model))
        content = await asyncio.to_thread(self._service.catalogue.preview, record, name)
        if content is None:
            raise Refused(NOT_FOUND)
        return replies.preview(name, content)

    async def warm_model(self, request: Request, model: str) -> Response:
        """Load a model's weights before its first request."""
        key = self._entered(request)
        with self._service.charged(key, 1):
            record = await self._service.find(key, _checked(self._service.meant(model)))
            deadline = self._service.options.deadline_seconds
            warmed = await self._service.models.warm(record.id, record.revision, deadline)
            source, load_ms = unless_refused(warmed)
        return replies.dumped(
            answers.Warmth(id=record.id, revision=record.revision, source=source, load_ms=load_ms)
        )

    async def delete_model(self, request: Request, model: str) -> Response:
        """Take a model down: out of the registry, every tier of every replica, and predictions."""
        key = self._entered(request, "manage")
        keys = await self._service.take_down(key, _checked(model))
        await self._predictions.forget(keys)  # first: replicas may take long
        await self._service.models.forget(keys)
        return replies.dumped(answers.Deletion(id=model))

    async def put_prediction(self, request: Request, name: PredictionName) -> Response:
        """Start an asynchronous request; a repetition with the same body starts nothing."""
        key, parsed = await self._parsed(request)
        digest = hashlib.sha256(parsed.model_dump_json().encode()).hexdigest()
        known = await self._predictions.known(key.tenant, name, digest)
        if known is not None:  # started and charged before
            return self._prediction(request, name, unless_refused(known))
        with self._service.charged(key, parsed.n):
            prepared = await self._service.prepare(key, parsed)
            begun = await self._predictions.put(name, digest, prepared.ask, parsed)
            return self._prediction(request, name, unless_refused(begun), prepared.headers())

    async def get_prediction(self, request: Request, name: PredictionName) -> Response:
        """Return the state of an asynchronous request."""
        key = self._entered(request)
        state = await self._predictions.get(key.tenant, name)
        return self._known_prediction(request, name, state)

    async def cancel_prediction(self, request: Request, name: PredictionName) -> Response:
        """Cancel an asynchronous request, or drop one that has ended."""
        key = self._entered(request)
        state = await self._predictions.cancel(key.tenant, name)
        return self._known_prediction(request, name, state)

    def _prediction(
        self,
        request: Request,
        name: str,
        state: PredictionState,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        status = 202 if state.status == "processing" else 200
        body = replies.prediction(name, state, self._address(request))
        return replies.dumped(body, status, headers)

    def _known_prediction(
        self, request: Request, name: str, state: PredictionState | None
    ) -> Response:
        if state is None:
            raise Refused(_NO_PREDICTION)
        return replies.dumped(replies.prediction(name, state, self._address(request)))

    async def healthz(self) -> Response:
        """Whether the ingress runs."""
        return replies.dumped(answers.Health())

    async def readyz(self) -> Response:
        """Whether a replica has its base loaded and has taken a real step with it."""
        return replies.dumped(answers.Readiness.model_validate(await self._service.readiness()))

    async def metrics(self, request: Request) -> Response:
        """Metrics in Prometheus' text format."""
        self._admit(request, "watch")
        text = await asyncio.to_thread(meters.exposition)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def page(self, name: str = "index.html") -> Response:
        """The page to try models on."""
        return playground.response(name)

    async def docs(self, request: Request) -> Response:
        """The schema, for people."""
        return playground.docs(request.app.openapi())

    def _admit(self, request: Request, scope: Scope) -> Key:
        host = request.client.host if request.client else None
        return self._service.gate.admit(request.headers.get("authorization"), host, scope)

    def _entered(self, request: Request, scope: Scope = "generate") -> Key:
        key = self._admit(request, scope)
        self._enter(request, key)
        return key

    def _enter(self, request: Request, key: Key) -> None:
        """Take a place, until the last byte of the response is sent."""
        self._service.places.take(key.tenant)
        request.scope[ON_END].append(lambda: self._service.places.leave(key.tenant))

    def _address(self, request: Request) -> str:
        return self._service.options.public_url or str(request.base_url).rstrip("/")


async def _sse(
    events: AsyncGenerator[Event], prepared: Prepared, begun: Begun
) -> AsyncGenerator[str]:
    """Server-sent events with OpenAI's names."""
    async for event in events:
        assert not isinstance(event, Begun)  # that was the first
        yield replies.event(event, prepared.request, prepared.ask, begun)


def _by_id(records: Sequence[ModelRecord]) -> list[Listed]:
    return [(record, None) for record in records]


def _after(last: str, listed: list[Listed], is_sorted: bool) -> list[Listed]:
    """Return what follows the model `last`; of a list by id also if it was removed meanwhile."""
    if not last:
        return listed
    if not is_sorted:
        return [one for one in listed if one[0].id > last]
    ids = [record.id for record, _ in listed]
    return listed[ids.index(last) + 1 :] if last in ids else []


def _checked(model: str) -> str:
    if not re.fullmatch(wire.MODEL_PATTERN.strip("^$"), model):
        raise Refused(NOT_FOUND)
    return model
