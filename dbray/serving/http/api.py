"""The application: the paths and their routes, the possible errors, and the schema."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, get_args

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import Match

import dbray
from dbray import bases
from dbray.errors import BaseError, StoreError
from dbray.serving.http import answers, replies, wire
from dbray.serving.http.predictions import Predictions
from dbray.serving.http.routes import Routes
from dbray.serving.http.service import Service
from dbray.serving.messages import BROKEN, NOTHING_HERE, STORAGE_DOWN, Refusal, Refused
from dbray.spec.paths import MINIATURE
from dbray.spec.sections import Sampler

_log = logging.getLogger(__name__)

_NOT_OFFERED = Refusal(
    404, "not_offered", "Of OpenAI's API, this server offers /v1/images/generations and /v1/models."
)
_ERRORS = {
    400: "The request is not valid.",
    401: "The key is missing or not valid.",
    403: "The key lacks a scope, or the request came from a page of another site.",
    404: "It does not exist, or belongs to another tenant.",
    408: "The body did not arrive in time.",
    409: "The id is in use for another request.",
    413: "The body is too large.",
    429: "The tenant's rate or share is used up; see Retry-After.",
    431: "The headers are too large.",
    500: "The server failed, or the model's files are damaged.",
    503: "The server is full, starting or stopping, or its storage cannot be read.",
    504: "The images were not ready in time.",
}
_ALWAYS = (403, 431, 500, 503)
_KEYED = (*_ALWAYS, 401, 429)
_BODY = (*_KEYED, 400, 404, 408, 413)
_SAMPLING = (*_BODY, 504)
_EVENTS = "text/event-stream"
_EVENT = {
    "type": "object",
    "description": "Of each event.",
    "required": ["event", "data"],
    "properties": {
        "event": {
            "enum": ["image_generation.partial_image", "image_generation.completed", "error"]
        },
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}
_KEY = {"key": {"type": "http", "scheme": "bearer", "description": "Not needed without keys."}}


def create_api(service: Service, predictions: Predictions) -> FastAPI:
    """Make the application."""
    api = FastAPI(
        title="dbray", version=dbray.__version__, description="Personalised diffusion models.",
        docs_url=None, redoc_url=None,
    )  # fmt: skip
    _add_routes(api, Routes(service, predictions))
    for kind, handler in (
        (Refused, _refused), (StoreError, _storage_down), (HTTPException, _http_error),
        (RequestValidationError, _bad_parameter), (Exception, _broken),
    ):  # fmt: skip
        api.add_exception_handler(kind, handler)
    schema = _schema(api, service)
    api.openapi = lambda: schema
    return api


def _add_routes(api: FastAPI, routes: Routes) -> None:
    def add(
        method: str,
        path: str,
        handler: Callable[..., Any],
        model: type[BaseModel] | None,
        errors: tuple[int, ...],
        **more: Any,
    ) -> None:
        responses = {status: _error(status) for status in sorted(errors)} | more.pop("also", {})
        needs_key = {"security": [{"key": []}]} if 401 in errors else {}
        extra = needs_key | more.pop("extra", {})
        api.add_api_route(
            path, handler, methods=[method], response_model=model, responses=responses,
            openapi_extra=extra, **more,
        )  # fmt: skip

    model, prediction = "/v1/models/{model}", "/v1/predictions/{name}"
    add("POST", "/v1/images/generations", routes.create_images, answers.ImagesResponse, _SAMPLING,
        also={200: _content(_EVENTS, "application/json")},
        extra=_GENERATION)  # fmt: skip
    add("GET", f"{replies.IMAGES_PATH}/{{name}}", routes.get_image, None, (*_ALWAYS, 404),
        also={200: _content("image/png", "image/webp", "image/jpeg")},
        response_class=Response)  # fmt: skip
    add("GET", "/v1/models", routes.list_models, answers.ModelList, (*_KEYED, 400))
    add("POST", f"{model}:warm", routes.warm_model, answers.Warmth, (*_KEYED, 404, 504))
    add("GET", model, routes.get_model, answers.ModelObject, (*_KEYED, 404))
    add("DELETE", model, routes.delete_model, answers.Deletion, (*_KEYED, 404))
    add("GET", f"{model}/previews/{{name}}", routes.get_preview, None, (*_KEYED, 404),
        also={200: _content("image/png", "image/webp")}, response_class=Response)  # fmt: skip
    add("PUT", prediction, routes.put_prediction, answers.Prediction, (*_BODY, 409),
        also={202: {"model": answers.Prediction, "description": "It was begun, or is running."}},
        extra=_GENERATION)  # fmt: skip
    add("GET", prediction, routes.get_prediction, answers.Prediction, (*_KEYED, 400, 404))
    add("DELETE", prediction, routes.cancel_prediction, answers.Prediction, (*_KEYED, 400, 404))
    add("GET", "/healthz", routes.healthz, answers.Health, _ALWAYS)
    add("GET", "/readyz", routes.readyz, answers.Readiness, _ALWAYS)
    add("GET", "/metrics", routes.metrics, None, _KEYED,
        also={200: _content("text/plain")}, response_class=Response)  # fmt: skip
    for path in ("/", "/playground", "/playground/", "/playground/{name}"):
        api.add_api_route(path, routes.page, include_in_schema=False)
    api.add_api_route("/docs", routes.docs, include_in_schema=False)


_GENERATION: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/GenerationRequest"}}
        },
    }
}


def _error(status: int) -> dict[str, Any]:
    return {"model": answers.ErrorBody, "description": _ERRORS[status]}


def _content(*media_types: str) -> dict[str, Any]:
    schemas: dict[str, Any] = {"application/json": {}, _EVENTS: {"schema": _EVENT}}
    text = {"schema": {"type": "string"}}
    return {"content": {kind: schemas.get(kind, text) for kind in media_types}}


def _schema(api: FastAPI, service: Service) -> dict[str, Any]:
    """The schema with this server's limits, and without FastAPI's own error body."""
    schema = get_openapi(
        title=api.title, version=api.version, description=api.description, routes=api.routes
    )
    for operations in schema["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    schemas = schema["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    components = "#/components/schemas/{model}"
    request = wire.GenerationRequest.model_json_schema(ref_template=components)
    schemas |= request.pop("$defs")
    request["properties"]["num_inference_steps"]["anyOf"][0]["maximum"] = service.options.max_steps
    request["properties"]["scheduler"]["anyOf"][0]["enum"] = _samplers(service)
    schemas["GenerationRequest"] = request
    schema["components"]["securitySchemes"] = _KEY
    return schema


def _samplers(service: Service) -> list[str]:
    """The samplers of the served base; those of all families if it cannot be read here."""
    options = service.options
    try:
        family = bases.family_of_name(options.base or MINIATURE, options.base_revision)
    except BaseError:
        return list(get_args(Sampler))
    return list(family.samplers)


async def _refused(_: Request, exc: Exception) -> Response:
    assert isinstance(exc, Refused)
    return replies.refusal(exc.refusal)


async def _http_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    if exc.status_code == 404:
        is_openai = request.url.path.startswith("/v1/")
        return replies.refusal(_NOT_OFFERED if is_openai else NOTHING_HERE)
    codes = {405: "method_not_allowed"}
    code = codes.get(exc.status_code, "invalid_request")
    response = replies.refusal(Refusal(exc.status_code, code, str(exc.detail)))
    response.headers.update(exc.headers or {})
    if exc.status_code == 405:
        response.headers["allow"] = ", ".join(sorted(_methods(request)))
    return response


def _methods(request: Request) -> set[str]:
    """The methods of a path: each route on its own names only its own."""
    routes = request.app.routes
    # The first that matches is the one that is served: {model}:warm, not {model}.
    path = next(one.path for one in routes if one.matches(request.scope)[0] is not Match.NONE)
    methods: set[str] = set().union(*(one.methods for one in routes if one.path == path))
    return methods | {"HEAD"} if "GET" in methods else methods


async def _bad_parameter(_: Request, exc: Exception) -> Response:
    assert isinstance(exc, RequestValidationError)
    finding: Any = exc.errors()[0]
    field = str(finding["loc"][-1])
    return replies.refusal(Refusal(400, "invalid_value", f"Invalid '{field}'.", field))


async def _storage_down(_: Request, exc: Exception) -> Response:
    _log.warning("storage cannot be read: %s", exc)
    return replies.refusal(STORAGE_DOWN)


async def _broken(_request: Request, _exc: Exception) -> Response:
    return replies.refusal(BROKEN)
