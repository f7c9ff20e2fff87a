"""Serving on one machine: starts Ray and the application, waits for a signal, drains, stops."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.exceptions import DeploymentUnavailableError

from dbray.cluster import start_local
from dbray.errors import SpecError
from dbray.serving.app import application, with_base
from dbray.serving.http.access import edge
from dbray.serving.http.access.tenants import is_loopback, read_keys
from dbray.serving.options import ServeOptions

_log = logging.getLogger(__name__)

APP = "dbray"
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_POLL_SECONDS = 0.2


def launch(
    registry: str,
    port: int = 8000,
    keys: Path | None = None,
    host: str = "127.0.0.1",
    on_ready: Callable[[str], None] | None = None,
    **options: Any,
) -> None:
    """Serve a registry until SIGTERM or SIGINT; then finish the requests in flight.

    Args:
        registry: folder or URI of the results of jobs.
        port: of HTTP.
        keys: key file; without one, access is open and only for this machine.
        host: address to listen on.
        on_ready: called with the address once images can be requested.
        options: further fields of ServeOptions.

    Raises:
        SpecError: open access on an address that other machines can reach, a wrong key file, no
            base, or a port that is not free.
    """
    if keys is None and not is_loopback(host):
        raise SpecError.of(
            f"host {host}",
            "other machines can reach it, and there are no keys",
            "give --keys, or serve on 127.0.0.1",
        )
    if keys is not None:
        read_keys(keys)
    given = ServeOptions(registry=registry, keys=str(keys) if keys else None, **options)
    stop = threading.Event()
    previous = {name: signal.signal(name, signal.default_int_handler) for name in _SIGNALS}
    try:
        start(given, port, host)
        for name in _SIGNALS:  # after Ray, which installs its own handlers
            signal.signal(name, lambda *_: stop.set())
        if on_ready:
            on_ready(f"http://{host}:{port}")
        # wait() without a time limit blocks signals on some platforms.
        while not stop.wait(_POLL_SECONDS):
            pass
        drain(given.drain_seconds)
    except KeyboardInterrupt:
        _log.warning("stopped before it was ready")
    finally:
        if ray.is_initialized():  # otherwise Serve would start Ray in order to shut it down
            serve.shutdown()
            ray.shutdown()
        for name, handler in previous.items():
            signal.signal(name, handler)


def _check_port(host: str, port: int) -> None:
    """Listen on the port for a moment: Ray would share it with another Ray Serve."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family, reuse_port=False).close()
    except (OSError, OverflowError) as exc:
        in_use = isinstance(exc, OSError) and exc.errno == errno.EADDRINUSE
        what = "is in use" if in_use else f"cannot be listened on: {exc}"
        raise SpecError.of(f"port {port} of {host}", what, "give another --port") from exc


def start(options: ServeOptions, port: int, host: str = "127.0.0.1") -> None:
    """Start Ray, unless it runs in this process, and the application on it.

    Raises:
        SpecError: no base is known, or nothing can listen on the port.
        BaseError: the base does not exist or is not usable.
    """
    is_ours = not ray.is_initialized()
    if is_ours:
        _check_port(host, port)
    options = with_base(options)
    if is_ours:
        edge.prepare()
        # Ray runs workers at a low priority by default, but here users wait for them.
        os.environ.setdefault("RAY_worker_niceness", "0")
        start_local(
            _log.warning,
            num_cpus=max(8, options.num_replicas * options.threads + 1),
            logging_level=logging.WARNING,
            log_to_driver=False,
        )
    serve.start(http_options={"host": host, "port": port})
    serve.run(application(options), name=APP, route_prefix="/")


def drain(seconds: float) -> int:
    """Refuse new requests and wait for those in flight; return how many remain."""
    handle, ends = serve.get_app_handle(APP), time.monotonic() + seconds

    def ask_all() -> int:
        """Drain every ingress, including new ones; one that has died has nothing in flight."""
        try:
            asked = handle.broadcast("drain")
            counts = asked.results(timeout_s=seconds + 5, return_exceptions=True)
        except DeploymentUnavailableError:
            return 0
        return sum(count for count in counts if isinstance(count, int))

    left = ask_all()
    while left and time.monotonic() < ends:
        time.sleep(_POLL_SECONDS)
        left = ask_all()
    if left:
        _log.warning("stopping with requests in flight: %d", left)
    return left
