"""The HTTP routes: OpenAI's Images API and models, predictions, health, metrics, the page.

Thin: reads what came, calls the Service, writes what comes back (see `replies`).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import AsyncGenerator, Mapping
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException

import dbray
from dbray.errors import StoreError
from dbray.serving import meters
from dbray.serving.http import playground, replies, wire
from dbray.serving.http.predictions import Outcome
from dbray.serving.http.service import PredictionStore, Prepared, Service
from dbray.serving.http.tenants import Key, Scope
from dbray.serving.messages import (
    BASE,
    BROKEN,
    NOT_FOUND,
    STORAGE_DOWN,
    Begun,
    Event,
    Refusal,
    Refused,
)

_log = logging.getLogger(__name__)

T = TypeVar("T")

_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": wire.GenerationRequest.model_json_schema()}},
    }
}
_PREDICTION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_NO_PREDICTION = Refusal(404, "prediction_not_found", "There is no such prediction.", "id")
_BAD_PREDICTION = Refusal(400, "invalid_value", "Invalid 'id' of a prediction.", "id")
_MAX_LIST = 1000


class Routes:
    """One method per route."""

    def __init__(self, service: Service, predictions: PredictionStore) -> None:
        self._service = service
        self._predictions = predictions

    async def create_images(self, request: Request) -> Response:
        """Sample images of a subject, or of the base."""
        key, parsed = await self._parsed(request)
        with self._service.charged(key, parsed.n):
            prepared = await self._service.prepare(key, parsed)
            if parsed.stream:
                return await self._streamed(prepared)
            answer = _unless_refused(await self._service.models.generate(prepared.ask))
        return replies.dumped(
            replies.images(prepared.request, prepared.ask, answer),
            headers=prepared.headers | replies.timing(answer.begun),
        )

    async def _parsed(self, request: Request) -> tuple[Key, wire.GenerationRequest]:
        key = self._admit(request, "generate")
        parsed = _unless_refused(wire.parse_request(await request.body()))
        self._service.check(parsed)
        return key, parsed

    async def _streamed(self, prepared: Prepared) -> Response:
        events = self._service.models.stream(prepared.ask)
        # Decides the status, which goes out before the rest.
        first = _unless_refused(await anext(events))
        assert isinstance(first, Begun)
        headers = prepared.headers | replies.timing(first) | {"x-accel-buffering": "no"}
        return StreamingResponse(
            _sse(events, prepared, first), media_type="text/event-stream", headers=headers
        )

    async def list_models(
        self, request: Request, limit: int = 100, after: str = "", contains: str = ""
    ) -> Response:
        """List the models that the caller may use, by id; `contains`: in the id or class noun."""
        key, wanted = self._admit(request, "generate"), contains.strip().casefold()
        records = [
            record
            for record in await self._service.visible(key)
            if record.id > after and wanted in f"{record.id} {record.class_noun}".casefold()
        ]
        shown = records[: max(1, min(limit, _MAX_LIST))]
        data = [replies.model(record) for record in shown]
        if not after and wanted in BASE:
            data.insert(0, replies.base_model(self._service.options.base))
        return replies.dumped(wire.ModelList(data=data, has_more=len(shown) < len(records)))

    async def get_model(self, request: Request, model: str) -> Response:
        """Describe one model."""
        key = self._admit(request, "generate")
        if model == BASE:
            return replies.dumped(replies.base_model(self._service.options.base))
        record, catalogue = await self._service.find(key, _checked(model)), self._service.catalogue
        names = await asyncio.to_thread(catalogue.previews, record)
        prompts = await asyncio.to_thread(catalogue.preview_prompts, record) if names else []
        return replies.dumped(replies.model(record, names, prompts))

    async def get_preview(self, request: Request, model: str, name: str) -> Response:
        """One file of a model's previews: an image."""
        key = self._admit(request, "generate")
        record = await self._service.find(key, _checked(model))
        content = await asyncio.to_thread(self._service.catalogue.preview, record, name)
        if content is None:
            raise Refused(NOT_FOUND)
        media_type = "image/png" if name.endswith(".png") else "image/webp"
        headers = {"cache-control": "private, max-age=3600"}
        return Response(content, media_type=media_type, headers=headers)

    async def warm_model(self, request: Request, model: str) -> Response:
        """Load a model's weights ahead of its first request."""
        key = self._admit(request, "generate")
        with self._service.charged(key, 1):
            record = await self._service.find(key, _checked(model))
            deadline = self._service.options.deadline_seconds
            warmed = await self._service.models.warm(record.id, record.revision, deadline)
            source, load_ms = _unless_refused(warmed)
        return replies.dumped(
            wire.Warmth(id=record.id, revision=record.revision, source=source, load_ms=load_ms)
        )

    async def delete_model(self, request: Request, model: str) -> Response:
        """Take a model down: out of the registry, every tier of every replica, and predictions."""
        key = self._admit(request, "manage")
        keys = await self._service.take_down(key, _checked(model))
        await self._predictions.forget(keys)  # before the replicas, for which it may wait long
        await self._service.models.forget(keys)
        return replies.dumped(wire.Deletion(id=model))

    async def put_prediction(self, request: Request, name: str) -> Response:
        """Begin an asynchronous request; again with the same body is the same request."""
        if not _PREDICTION_ID.fullmatch(name):
            raise Refused(_BAD_PREDICTION)
        key, parsed = await self._parsed(request)
        digest = hashlib.sha256(parsed.model_dump_json().encode()).hexdigest()
        known = await self._predictions.known(key.tenant, name, digest)
        if known is not None:  # asked for and charged before
            return _prediction(name, _unless_refused(known))
        with self._service.charged(key, parsed.n):
            prepared = await self._service.prepare(key, parsed)
            begun = await self._predictions.put(name, digest, prepared.ask, parsed)
            return _prediction(name, _unless_refused(begun), prepared.headers)

    async def get_prediction(self, request: Request, name: str) -> Response:
        """Say what became of an asynchronous request."""
        key = self._admit(request, "generate")
        return _known_prediction(name, await self._predictions.get(key.tenant, name))

    async def cancel_prediction(self, request: Request, name: str) -> Response:
        """Cancel an asynchronous request, or forget one that has ended."""
        key = self._admit(request, "generate")
        return _known_prediction(name, await self._predictions.cancel(key.tenant, name))

    async def healthz(self) -> Response:
        """Whether the ingress lives."""
        return JSONResponse({"status": "ok"})

    async def readyz(self) -> Response:
        """Whether a replica has its base loaded and has taken a real step with it."""
        return JSONResponse(await self._service.readiness())

    async def metrics(self, request: Request) -> Response:
        """Metrics in Prometheus' text format."""
        self._admit(request, "watch")
        text = await asyncio.to_thread(meters.exposition)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def page(self, name: str = "index.html") -> Response:
        """The page to try models on."""
        return playground.response(name)

    def _admit(self, request: Request, scope: Scope) -> Key:
        host = request.client.host if request.client else None
        return self._service.gate.admit(request.headers.get("authorization"), host, scope)


def create_api(service: Service, predictions: PredictionStore) -> FastAPI:
    """Make the application."""
    api = FastAPI(
        title="dbray", version=dbray.__version__, description="Personalised diffusion models."
    )
    routes = Routes(service, predictions)
    add = api.add_api_route
    model, prediction = "/v1/models/{model}", "/v1/predictions/{name}"
    add(
        "/v1/images/generations",
        routes.create_images,
        methods=["POST"],
        response_model=wire.ImagesResponse,
        openapi_extra=_BODY,
    )
    add("/v1/models", routes.list_models, response_model=wire.ModelList)
    add(f"{model}:warm", routes.warm_model, methods=["POST"], response_model=wire.Warmth)
    add(model, routes.get_model, response_model=wire.ModelObject)
    add(model, routes.delete_model, methods=["DELETE"], response_model=wire.Deletion)
    add(f"{model}/previews/{{name}}", routes.get_preview)
    add(
        prediction,
        routes.put_prediction,
        methods=["PUT"],
        response_model=wire.Prediction,
        openapi_extra=_BODY,
    )
    add(prediction, routes.get_prediction, response_model=wire.Prediction)
    add(prediction, routes.cancel_prediction, methods=["DELETE"], response_model=wire.Prediction)
    for path, handler in (
        ("/healthz", routes.healthz),
        ("/readyz", routes.readyz),
        ("/metrics", routes.metrics),
    ):
        add(path, handler)
    for path in ("/", "/playground", "/playground/", "/playground/{name}"):
        add(path, routes.page, include_in_schema=False)  # fmt: skip
    api.add_exception_handler(Refused, _refused)
    api.add_exception_handler(StoreError, _storage_down)
    api.add_exception_handler(HTTPException, _http_error)
    api.add_exception_handler(RequestValidationError, _bad_query)
    api.add_exception_handler(Exception, _broken)
    return api


async def _sse(
    events: AsyncGenerator[Event], prepared: Prepared, begun: Begun
) -> AsyncGenerator[str]:
    """Server-sent events with OpenAI's names."""
    async for event in events:
        assert not isinstance(event, Begun)  # that was the first
        yield replies.event(event, prepared.request, prepared.ask, begun)


def _unless_refused(answer: T | Refusal) -> T:
    if isinstance(answer, Refusal):
        raise Refused(answer)
    return answer


def _prediction(name: str, outcome: Outcome, headers: Mapping[str, str] | None = None) -> Response:
    status = 202 if outcome.status == "processing" else 200
    return replies.dumped(replies.prediction(name, outcome), status, headers)


def _known_prediction(name: str, outcome: Outcome | None) -> Response:
    if outcome is None:
        raise Refused(_NO_PREDICTION)
    return replies.dumped(replies.prediction(name, outcome))


def _checked(model: str) -> str:
    if not re.fullmatch(wire.MODEL_PATTERN.strip("^$"), model):
        raise Refused(NOT_FOUND)
    return model


async def _refused(_: Request, exc: Exception) -> Response:
    assert isinstance(exc, Refused)
    return _reply(exc.refusal)


async def _http_error(_: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    codes = {404: "not_found", 405: "method_not_allowed"}
    message = "There is nothing here." if exc.status_code == 404 else str(exc.detail)
    code = codes.get(exc.status_code, "invalid_request")
    response = _reply(Refusal(exc.status_code, code, message))
    response.headers.update(exc.headers or {})
    return response


async def _bad_query(_: Request, exc: Exception) -> Response:
    assert isinstance(exc, RequestValidationError)
    finding: Any = exc.errors()[0]
    field = str(finding["loc"][-1])
    return _reply(Refusal(400, "invalid_value", f"Invalid '{field}'.", field))


async def _storage_down(_: Request, exc: Exception) -> Response:
    _log.warning("storage does not answer: %s", exc)
    return _reply(STORAGE_DOWN)


async def _broken(_request: Request, _exc: Exception) -> Response:
    return _reply(BROKEN)


def _reply(refusal: Refusal) -> Response:
    return JSONResponse(refusal.body(), refusal.status, refusal.headers())
