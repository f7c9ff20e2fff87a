"""The Ray cluster that a job runs on: joined, or started for as long as it is needed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ray

from dbray.plan import Hardware

_OBJECT_STORE_BYTES = 512 * 2**20


def hardware() -> Hardware:
    """What the connected cluster holds."""
    resources = ray.cluster_resources()
    return Hardware(int(resources.get("CPU", 0)), int(resources.get("GPU", 0)))


@contextmanager
def connected(address: str | None, note: Callable[[str], None]) -> Iterator[None]:
    """Use the cluster that is connected, or that at `address`, or a local one.

    Args:
        address: of a running cluster; None starts a local one, and stops it at the end.
        note: is told where the dashboard is.
    """
    if ray.is_initialized():
        yield
        return
    context = ray.init(
        # Without "local" Ray would join whatever cluster it finds on this machine.
        address=address or "local",
        object_store_memory=None if address else _OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    if context.dashboard_url:
        note(f"Ray dashboard: http://{context.dashboard_url}")
    try:
        yield
    finally:
        ray.shutdown()
