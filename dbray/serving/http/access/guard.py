"""The outermost layer of the ingress: request ids, sizes, origins, and the time of requests.

Plain ASGI, so that a refused body is not read and a stream passes unchanged.
"""

from __future__ import annotations

import logging
import re
import time
import traceback
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dbray.serving.http.access.tenants import is_loopback
from dbray.serving.messages import BROKEN, Refusal, Refused

_log = logging.getLogger(__name__)

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
MAX_HEADER_BYTES = 32 * 1024
_SAFE = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
_TOO_LARGE = Refusal(413, "body_too_large", "The body is too large.")
_LONG_HEADERS = Refusal(431, "headers_too_large", "The headers are too large.")
_FOREIGN = Refusal(403, "foreign_origin", "Without keys, pages of other sites are refused.")

ON_END = "dbray.on_end"
"""Callables in a request's scope, called at its end."""

OnAnswer = Callable[[str, int, float], None]


class Guard:
    """Wraps the API. `is_open`: no keys are needed."""

    def __init__(
        self, app: ASGIApp, max_body_bytes: int, is_open: bool, on_answer: OnAnswer
    ) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._is_open = is_open
        self._on_answer = on_answer
        self.num_requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        response = _Response(send, headers)
        started = time.monotonic()
        self.num_requests += 1
        scope[ON_END] = []
        try:
            refusal = self._refusal(headers)
            if refusal:
                await response.refuse(refusal)
            else:
                await self._pass(scope, receive, response)
        finally:
            self.num_requests -= 1
            for on_end in scope[ON_END]:
                on_end()
            # The route's template, never the path: it holds names.
            route = getattr(scope.get("route"), "path", "other")
            self._on_answer(route, response.status, time.monotonic() - started)

    def _refusal(self, headers: Headers) -> Refusal | None:
        if sum(len(name) + len(value) for name, value in headers.raw) > MAX_HEADER_BYTES:
            return _LONG_HEADERS
        if self._is_open and not _is_own_site(headers):
            return _FOREIGN
        return None

    async def _pass(self, scope: Scope, receive: Receive, response: _Response) -> None:
        num_bytes = 0

        async def limited() -> Message:
            """Refuse a body that is too large when it is read: other routes ignore bodies."""
            nonlocal num_bytes
            if self._is_too_large(scope):
                raise Refused(_TOO_LARGE)
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_body_bytes:
                raise Refused(_TOO_LARGE)
            return message

        if scope["method"] == "HEAD":  # the same headers as GET; the server sends no body
            scope = {**scope, "method": "GET"}
        try:
            await self._app(scope, limited, response.send)
        except Refused as exc:
            await response.refuse(exc.refusal)
        except Exception as exc:  # noqa: BLE001 - callers get our own error bodies only
            # Not the message: it may quote what a tenant wrote.
            place = "".join(traceback.format_tb(exc.__traceback__))
            _log.error("request=%s failed: %s\n%s", response.request_id, type(exc).__name__, place)
            await response.refuse(BROKEN)

    def _is_too_large(self, scope: Scope) -> bool:
        length = Headers(scope=scope).get("content-length", "0")
        is_number = length.isascii() and length.isdigit()
        return not is_number or int(length) > self._max_body_bytes


class _Response:
    """Sends a response with the headers that all responses have."""

    def __init__(self, send: Send, headers: Headers) -> None:
        self._send = send
        given = headers.get("x-request-id", "")
        # Serve's proxy sends back an id that was given; ours would be a second one.
        self._made_id = not REQUEST_ID.fullmatch(given)
        self.request_id = uuid.uuid4().hex if self._made_id else given
        self.status = 499  # the client disconnected, unless something is sent

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            if self._made_id:
                headers["x-request-id"] = self.request_id
            for name, value in _SAFE.items():
                headers.setdefault(name, value)
        await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        if self.status != 499:
            return  # too late for another status
        for message in refusal_messages(refusal):
            await self.send(message)


def refusal_messages(refusal: Refusal) -> tuple[dict[str, Any], dict[str, Any]]:
    """The two ASGI messages of an error response."""
    body = refusal.encoded()
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    headers |= refusal.headers()
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    start = {"type": "http.response.start", "status": refusal.status, "headers": raw}
    return start, {"type": "http.response.body", "body": body}


def _is_own_site(headers: Headers) -> bool:
    """Whether no other site's page made it: those could use an open server (CSRF, rebinding)."""
    host = _hostname("//" + headers.get("host", ""))
    if not (host == "localhost" or is_loopback(host)):
        return False
    origin = headers.get("origin")
    return origin is None or (urlsplit(origin).netloc == headers.get("host"))


def _hostname(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
