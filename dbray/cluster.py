"""The Ray cluster of a job: an existing one, or a local one that ends with the job.

Owns the connection of this process to Ray, and the translation of connection errors.
"""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import ray
from ray.exceptions import RayError

from dbray.errors import SpecError
from dbray.hardware import Hardware

_OBJECT_STORE_BYTES = 512 * 2**20
_ANSWER_SECONDS = 10.0


def hardware() -> Hardware:
    """CPUs and GPUs of the connected cluster."""
    resources = ray.cluster_resources()
    return Hardware(int(resources.get("CPU", 0)), int(resources.get("GPU", 0)))


@contextmanager
def connected(address: str | None, note: Callable[[str], None]) -> Iterator[None]:
    """Use the connected cluster, else the one at `address`, else a local one.

    Args:
        address: of a running cluster; None starts a local one, and stops it at the end.
        note: called with a message that contains the address of the cluster or of its dashboard.

    Raises:
        SpecError: no cluster answers at the address, or no local one can be started.
    """
    if ray.is_initialized():
        yield
        return
    try:
        if address:
            note(f"connecting to the Ray cluster at {address}")
        with _caller_handles_sigterm():
            context = _connect(address)
        if context.dashboard_url:
            note(f"Ray dashboard: http://{context.dashboard_url}")
        yield
    finally:
        ray.shutdown()


def _connect(address: str | None) -> Any:
    """Start Ray, or connect to it. Raises SpecError."""
    try:
        if address:
            _check_listening(address)
        return ray.init(
            # Without "local" Ray would join any cluster that it finds on this machine.
            address=address or "local",
            object_store_memory=None if address else _OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ValueError, OSError, RuntimeError, RayError) as exc:
        raise _connection_error(address, exc) from exc


def _check_listening(address: str) -> None:
    """Open a connection and close it: Ray would retry for ten minutes.

    Raises:
        OSError: no process listens there.
        ValueError: the port is invalid.
    """
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.hostname and parts.port:  # "auto" and "local" are left to Ray
        socket.create_connection((parts.hostname, parts.port), _ANSWER_SECONDS).close()


def _connection_error(address: str | None, exc: Exception) -> SpecError:
    if address is None:
        what = f"cannot be started on this machine: {exc}"
        return SpecError.of("Ray", what, "free memory and disk; see /tmp/ray/session_latest/logs")
    return SpecError.of(
        f"Ray address {address!r}", f"cannot connect to a cluster there: {exc}",
        "give --address or RAY_ADDRESS as <host of the head node>:6379 or, from outside the "
        "cluster, ray://<host>:10001; without an address, dbray starts Ray on this machine",
    )  # fmt: skip


@contextmanager
def _caller_handles_sigterm() -> Iterator[None]:
    """Keep the caller's handler of SIGTERM: Ray installs its own, which exits at once."""
    handler = signal.getsignal(signal.SIGTERM)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        yield
    except SystemExit as exc:
        if exc.code == signal.SIGTERM:  # a signal that arrived in this block
            handler(signal.SIGTERM, None)
        raise
    finally:
        signal.signal(signal.SIGTERM, handler)
