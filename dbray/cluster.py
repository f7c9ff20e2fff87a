"""The Ray cluster of a job: an existing one, or a local one that ends with the job.

Owns the connection of this process to Ray, and the translation of connection errors.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray
from ray.exceptions import RayError

from dbray.errors import SpecError
from dbray.hardware import Hardware
from dbray.processes import look_rarely, wait_passively, worker_environment

_OBJECT_STORE_BYTES = 512 * 2**20
_ANSWER_SECONDS = 10.0
_SHORT_FOLDER = "/tmp"
_LEAST_DISK_BYTES = 64 * 2**20
_TOO_LONG, _TIMED_OUT = "AF_UNIX path", "timed out during startup"
"""In Ray's messages."""


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
        with _caller_handles_sigterm():
            context = _join(address, note) if address else _start(note)
        if context.dashboard_url:
            note(f"Ray dashboard: http://{context.dashboard_url}")
        yield
    finally:
        ray.shutdown()


def _join(address: str, note: Callable[[str], None]) -> Any:
    """Connect to a cluster. Raises SpecError."""
    note(f"connecting to the Ray cluster at {address}")
    # A job of `dbray submit` has its own environment; variables set in both have equal values.
    os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
    try:
        _check_listening(address)
        return ray.init(
            address=address,
            runtime_env={"env_vars": worker_environment()},
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ValueError, OSError, RuntimeError, RayError) as exc:
        raise SpecError.of(
            f"Ray address {address!r}", f"cannot connect to a cluster there: {exc}",
            "give --address or RAY_ADDRESS as <host of the head node>:6379 or, from outside the "
            "cluster, ray://<host>:10001; without an address, dbray starts Ray on this machine",
        ) from exc  # fmt: skip


def _start(note: Callable[[str], None]) -> Any:
    """Start Ray on this machine. Raises SpecError."""
    return start_local(
        note,
        object_store_memory=_OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def start_local(note: Callable[[str], None], **options: Any) -> Any:
    """Start Ray on this machine; `options` are for `ray.init`.

    Raises:
        SpecError: it cannot be started.
    """
    wait_passively(os.environ)
    look_rarely(os.environ)
    try:
        return _init_local(note, options)
    except Exception as exc:  # Ray also raises plain exceptions
        raise SpecError.of("Ray", f"cannot be started on this machine: {exc}", _fix(exc)) from exc


def _init_local(note: Callable[[str], None], options: dict[str, Any]) -> Any:
    """Start Ray; where a second attempt may succeed, make one."""
    try:
        # Without "local" Ray would join any cluster that it finds on this machine.
        return ray.init(address="local", **options)
    except Exception as exc:
        if not _may_succeed_now(str(exc), note):
            raise
    ray.shutdown()
    return ray.init(address="local", **options)


def _may_succeed_now(reason: str, note: Callable[[str], None]) -> bool:
    """Return whether a second attempt may succeed; remove the cause if that is possible."""
    if _TOO_LONG in reason:
        note(f"the path of TMPDIR is too long for Ray's sockets: Ray uses {_SHORT_FOLDER}")
        # Ray reads the first; its dashboard, which has its own sockets, the second.
        os.environ.update(RAY_TMPDIR=_SHORT_FOLDER, TMPDIR=_SHORT_FOLDER)
        return True
    if _TIMED_OUT in reason and not _disk_is_full(_folder()):
        note("Ray has not started within its 30 seconds, as on a busy machine: trying once more")
        return True
    return False


def _fix(exc: Exception) -> str:
    """Return the fix for a failed start of Ray on this machine."""
    folder = _folder()
    if isinstance(exc, OSError):
        return f"set RAY_TMPDIR to a folder that can be written, instead of {folder}"
    if _disk_is_full(folder):
        return f"free space on the disk of {folder}, or set RAY_TMPDIR to a folder on another disk"
    return f"see Ray's logs in {folder}/ray/session_latest/logs"


def _folder() -> Path:
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")


def _disk_is_full(folder: Path) -> bool:
    return shutil.disk_usage(folder).free < _LEAST_DISK_BYTES


def _check_listening(address: str) -> None:
    """Open a connection and close it: Ray would retry for ten minutes.

    Raises:
        OSError: no process listens there.
        ValueError: the port is invalid.
    """
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.hostname and parts.port:  # "auto" and "local" are left to Ray
        socket.create_connection((parts.hostname, parts.port), _ANSWER_SECONDS).close()


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
