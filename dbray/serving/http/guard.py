"""The outermost layer of the ingress: request ids, sizes, origins, load, and the time it all took.

Plain ASGI, so that a refused body is never read and a stream passes through untouched.
"""

from __future__ import annotations

import json
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

from dbray.serving.http.tenants import is_loopback
from dbray.serving.messages import BROKEN, OVERLOADED, Refusal, Refused

_log = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SAFE = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
_TOO_LARGE = Refusal(413, "body_too_large", "The body is too large.")
_FOREIGN = Refusal(403, "foreign_origin", "Without keys, no other site's pages may ask.")

OnAnswer = Callable[[str, int, float], None]


class Guard:
    """Wraps the API. `is_open` says that no keys are asked for."""

    def __init__(
        self,
        app: ASGIApp,
        max_body_bytes: int,
        max_requests: int,
        is_open: bool,
        on_answer: OnAnswer,
    ) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._max_requests = max_requests
        self._is_open = is_open
        self._on_answer = on_answer
        self.num_requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        answer = _Answer(send, headers)
        started = time.monotonic()
        self.num_requests += 1
        try:
            refusal = self._refusal(headers)
            if refusal:
                await answer.refuse(refusal)
            else:
                await self._pass(scope, receive, answer)
        finally:
            self.num_requests -= 1
            # The route's template, never the path: it holds names.
            route = getattr(scope.get("route"), "path", "other")
            self._on_answer(route, answer.status, time.monotonic() - started)

    def _refusal(self, headers: Headers) -> Refusal | None:
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or int(length) > self._max_body_bytes:
            return _TOO_LARGE
        if self.num_requests > self._max_requests:
            return OVERLOADED
        if self._is_open and not _is_own_site(headers):
            return _FOREIGN
        return None

    async def _pass(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        num_bytes = 0

        async def limited() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_body_bytes:
                raise Refused(_TOO_LARGE)
            return message

        try:
            await self._app(scope, limited, answer.send)
        except Refused as exc:
            await answer.refuse(exc.refusal)
        except Exception as exc:  # noqa: BLE001 - the edge: nothing may leave but our own body
            # Not the message: it may quote what a tenant wrote.
            place = "".join(traceback.format_tb(exc.__traceback__))
            _log.error("request=%s failed: %s\n%s", answer.request_id, type(exc).__name__, place)
            await answer.refuse(BROKEN)


class _Answer:
    """Sends an answer with the headers that all have."""

    def __init__(self, send: Send, headers: Headers) -> None:
        self._send = send
        given = headers.get("x-request-id", "")
        # Serve's proxy gives every request an id and sends it back; then ours would be a second.
        self._made_id = not _REQUEST_ID.fullmatch(given)
        self.request_id = uuid.uuid4().hex if self._made_id else given
        self.status = 499  # until something is sent: the client hung up

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
        body = json.dumps(refusal.body()).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body))}
        headers |= refusal.headers()
        if refusal is _TOO_LARGE:
            headers["connection"] = "close"
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        start: dict[str, Any] = {"type": "http.response.start", "status": refusal.status}
        await self.send({**start, "headers": raw})
        await self.send({"type": "http.response.body", "body": body})


def _is_own_site(headers: Headers) -> bool:
    """Without keys, a page of another site must not use its visitor's server (CSRF, rebinding)."""
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
