"""How the processes of dbray share a machine's cores.

OpenMP's threads spin while they wait for each other. Beside other load that multiplies the time of
small models: two spinning threads took nine times as long as one. Waiting passively costs next to
nothing. Values that the user has set stay. Everything here has to come before torch is imported,
or before the process that is to inherit it is started.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

_MAX_THREADS = 8
"""More threads do not make one small model faster."""


def wait_passively(environment: MutableMapping[str, str]) -> None:
    """Have idle threads sleep, here and in the processes started from here."""
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def limit_threads(environment: MutableMapping[str, str]) -> None:
    """Compute with as many threads as this process has cores. Ray decides for its own workers."""
    # macOS has no sched_getaffinity.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    environment.setdefault("OMP_NUM_THREADS", str(min(cores or 1, _MAX_THREADS)))
