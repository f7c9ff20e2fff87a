"""Added to Ray Serve's HTTP proxy: limits of the time and size of headers, and error bodies.

The proxy calls `extend` as it starts, where RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names it
("dbray.serving.http.access.edge:extend"). All else works without it: see serve/README.md.
"""

from __future__ import annotations

import asyncio
import os
import uuid

import uvicorn.config
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from dbray.serving.http.access.guard import MAX_HEADER_BYTES, refusal_messages
from dbray.serving.messages import (
    LOST,
    NOT_READY,
    NOTHING_HERE,
    OVERLOADED,
    TIMED_OUT,
    Refusal,
)

HEADER_SECONDS = 10.0
ENVIRONMENT = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "dbray.serving.http.access.edge:extend",
    # A dead proxy is noticed by this check, and replaced: the defaults take half a minute.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "3",
}
"""Environment of Ray Serve's processes; see `prepare`."""


def prepare() -> None:
    """Set ENVIRONMENT for a Ray that this process starts; what the user has set is kept."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def extend() -> list[Middleware]:
    """Limit headers, and add error bodies to the proxy's own failures."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:LimitedProtocol"
    return [Middleware(OwnErrors)]


class LimitedProtocol(HttpToolsProtocol):
    """A connection on which the headers of each request have limits of time and size."""

    _timer: asyncio.TimerHandle | None = None
    _num_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer for the first request."""
        super().connection_made(transport)
        self._await_headers()

    def on_message_begin(self) -> None:
        """Start the timer for a later request."""
        super().on_message_begin()
        if self._timer is None:
            self._await_headers()

    def on_headers_complete(self) -> None:
        """Stop the timer."""
        self._stop()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Count the bytes that arrive before the headers are complete."""
        self._num_bytes += len(data)
        super().data_received(data)
        if self._timer is not None and self._num_bytes > MAX_HEADER_BYTES:
            self._refuse()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._stop()
        super().connection_lost(exc)

    def _await_headers(self) -> None:
        self._num_bytes = 0
        self._timer = self.loop.call_later(HEADER_SECONDS, self._refuse)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self) -> None:
        self._stop()
        if not self.transport.is_closing():
            self.transport.close()


class OwnErrors:
    """Replaces the proxy's own failures, plain text or nothing, by OpenAI's error body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_begun, is_replaced = False, False

        async def checked(message: Message) -> None:
            nonlocal has_begun, is_replaced
            if message["type"] == "http.response.start":
                has_begun, is_replaced = True, _is_own_failure(message)
                if is_replaced:
                    await _fail(scope, send, _refusal_of(message["status"]))
            if not is_replaced:
                await send(message)

        await self._app(scope, receive, checked)
        if not has_begun:  # the ingress died: the proxy returns without a response
            await _fail(scope, send, LOST)


async def _fail(scope: Scope, send: Send, refusal: Refusal) -> None:
    start, body = refusal_messages(refusal)
    request_id = Headers(scope=scope).get("x-request-id", uuid.uuid4().hex)
    start["headers"].append((b"x-request-id", request_id.encode("latin-1")))
    await send(start)
    await send(body)


def _is_own_failure(start: Message) -> bool:
    """Whether the proxy made it: all responses of the ingress have a header that it lacks."""
    names = {name.lower() for name, _ in start.get("headers", ())}
    return start["status"] >= 400 and b"x-content-type-options" not in names


def _refusal_of(status: int) -> Refusal:
    known = {404: NOTHING_HERE, 408: TIMED_OUT, 429: OVERLOADED, 503: NOT_READY}
    return known.get(status, LOST)
