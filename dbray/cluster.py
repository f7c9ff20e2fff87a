"""The Ray cluster that a job runs on: joined, or started for as long as it is needed.

Owns what joining does to this process, and the translation of its errors.
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
    """What the connected cluster holds."""
    resources = ray.cluster_resources()
    return Hardware(int(resources.get("CPU", 0)), int(resources.get("GPU", 0)))


@contextmanager
def connected(address: str | None, note: Callable[[str], None]) -> Iterator[None]:
    """Use the cluster that is connected, or that at `address`, or a local one.

    Args:
        address: of a running cluster; None starts a local one, and stops it at the end.
        note: is told which cluster is joined, and where its dashboard is.

    Raises:
        SpecError: no cluster answers at the address, or no local one can be started.
    """
    if ray.is_initialized():
        yield
        return
    try:
        if address:
            note(f"joining the Ray cluster at {address}")
        with _signals_of_the_caller():
            context = _join(address)
        if context.dashboard_url:
            note(f"Ray dashboard: http://{context.dashboard_url}")
        yield
    finally:
        ray.shutdown()


def _join(address: str | None) -> Any:
    """Start Ray, or connect to it. Raises SpecError."""
    try:
        if address:
            _knock(address)
        return ray.init(
            # Without "local" Ray would join whatever cluster it finds on this machine.
            address=address or "local",
            object_store_memory=None if address else _OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ValueError, OSError, RuntimeError, RayError) as exc:
        raise _unusable(address, exc) from exc


def _knock(address: str) -> None:
    """See whether anybody listens: Ray itself tries for ten minutes. Raises OSError, ValueError."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.hostname and parts.port:  # what else there may be, Ray reads: "auto", "local"
        socket.create_connection((parts.hostname, parts.port), _ANSWER_SECONDS).close()


def _unusable(address: str | None, exc: Exception) -> SpecError:
    if address is None:
        what = f"it cannot be started on this machine: {exc}"
        return SpecError.of("Ray", what, "free memory and disk; see /tmp/ray/session_latest/logs")
    return SpecError.of(
        f"Ray address {address!r}", f"no cluster can be joined there: {exc}",
        "give --address or RAY_ADDRESS as <host of the head node>:6379 or, from outside the "
        "cluster, ray://<host>:10001; without either, dbray starts Ray on this machine",
    )  # fmt: skip


@contextmanager
def _signals_of_the_caller() -> Iterator[None]:
    """Keep the caller's handler of SIGTERM: Ray puts its own there, which exits on the spot."""
    handler = signal.getsignal(signal.SIGTERM)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        yield
    except SystemExit as exc:
        if exc.code == signal.SIGTERM:  # it came meanwhile, and was the caller's
            handler(signal.SIGTERM, None)
        raise
    finally:
        signal.signal(signal.SIGTERM, handler)
