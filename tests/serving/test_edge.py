"""Additions to Ray Serve's proxy: limits of headers, and bodies of its own failures."""

from __future__ import annotations

import asyncio
import socket
import threading
import time

import httpx
import pytest
import uvicorn
from kit.serving import free_port

from dbray.serving.http.access import edge
from dbray.serving.http.access.guard import MAX_HEADER_BYTES

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def port(monkeypatch):
    """A server whose protocol is chosen as in the proxy, with little time for headers."""
    monkeypatch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", "unused")
    monkeypatch.setattr(edge, "HEADER_SECONDS", 0.2)
    edge.extend()

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    port = free_port()
    config = uvicorn.Config(app, port=port, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield port
    server.should_exit = True
    thread.join()


def answer_to(port, *parts):
    """Return everything received until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for part in parts:
            connection.sendall(part)
        with connection.makefile("rb") as answer:
            return answer.read()


WHOLE = b"GET / HTTP/1.1\r\nhost: h\r\n\r\n"


def test_headers_must_arrive_in_time(port):
    assert answer_to(port) == b""
    assert answer_to(port, b"GET / HT") == b""
    answer = answer_to(port, WHOLE, b"GET / HTTP/1.1\r\nhost:")
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b"HTTP/1.1") == 1


def test_headers_must_not_be_too_large(port):
    line = b"x: " + b"y" * 1000 + b"\r\n"
    try:
        answer = answer_to(port, WHOLE[:-2], *[line] * (2 * MAX_HEADER_BYTES // len(line)))
    except ConnectionError:
        answer = b""
    assert b"200" not in answer


def ask(app):
    async def run():
        transport = httpx.ASGITransport(edge.OwnErrors(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://h") as client:
            return await client.get("/", headers={"x-request-id": "mine"})

    return asyncio.run(run())


def answering(status, headers=(), body=b"A plain text of the proxy's"):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": status, "headers": list(headers)})
        await send({"type": "http.response.body", "body": body})

    return app


async def silent(scope, receive, send):
    """Respond like the proxy when the ingress dies during a request."""


@pytest.mark.parametrize(("app", "status", "code"), [
    (silent, 503, "replica_lost"),
    (answering(500), 503, "replica_lost"),
    (answering(503), 503, "not_ready"),
    (answering(408), 504, "timed_out"),
    (answering(404), 404, "not_found"),
])  # fmt: skip
def test_failures_of_the_proxy_have_dbrays_body(app, status, code):
    answer = ask(app)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.headers["x-request-id"] == "mine"


def test_responses_of_the_ingress_pass_unchanged():
    answer = ask(answering(503, [(b"X-Content-Type-Options", b"nosniff")], b"ours"))
    assert (answer.status_code, answer.content) == (503, b"ours")
    assert ask(answering(200, body=b"ours")).content == b"ours"
