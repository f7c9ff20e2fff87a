"""Environment variables of dbray's processes: threads, waiting, and a local Ray.

OpenMP's threads spin while they wait for each other. Under other load this multiplies the time of
small models: two spinning threads took nine times as long as one. Passive waiting costs almost
nothing. torch starts a thread for each core that it sees, also in a container that is limited to
a few. Values that the user has set are kept. Set them before torch or Ray is imported, or before
the process that inherits the environment is started.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

_WAIT_POLICY, _NUM_THREADS = "OMP_WAIT_POLICY", "OMP_NUM_THREADS"
_CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")
_RARELY = {
    "EVENT_AGENT_REPORT_INTERVAL_SECONDS": "2",  # 0.1
    "LOG_NAME_UPDATE_INTERVAL_S": "2",  # 0.1 where there are fewer files than in the next
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",
    "METRICS_RECORD_INTERVAL_S": "15",  # 5
    "RAY_DASHBOARD_AGENT_CHECK_PARENT_INTERVAL_S": "2",  # 0.4
    "RAY_DASHBOARD_AGENT_POLL_INTERVAL_S": "5",  # 1
    "RAY_task_events_report_interval_ms": "5000",  # 1000
    "REPORTER_UPDATE_INTERVAL_MS": "15000",  # 5000
    "SCAN_EVENT_DIR_INTERVAL_SECONDS": "10",  # 2
}
"""Of Ray's dashboard and monitors; their own values are beside them."""


def wait_passively(environment: MutableMapping[str, str]) -> None:
    """Make idle threads sleep, in this process and in those that it starts."""
    environment.setdefault(_WAIT_POLICY, "PASSIVE")


def use_own_cores(environment: MutableMapping[str, str]) -> None:
    """Limit threads to the cores of this process.

    Not for a process that starts Ray: Ray's workers would inherit the number.
    """
    environment.setdefault(_NUM_THREADS, str(num_cores()))


def num_cores(limit: Path = _CGROUP_LIMIT) -> int:
    """Return the number of usable cores, by affinity and the container's limit."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = limit.read_text().split()
        allowed = int(quota) / int(period)
    except (OSError, ValueError):  # no container, or "max"
        return cores or 1
    return max(1, min(cores or 1, int(allowed)))


def stay_on_loopback(environment: MutableMapping[str, str]) -> None:
    """Make a local Ray listen on loopback; without effect once Ray is imported.

    This is Ray's setting for systems whose firewalls ask about every port. Otherwise its ports and
    exporters of metrics listen on all interfaces.
    """
    if "ray" not in sys.modules:
        environment.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


def look_rarely(environment: MutableMapping[str, str]) -> None:
    """Make the processes that a local Ray starts beside the workers look at the cluster less often.

    On two cores the dashboard's processes took 7 % of the lanes' steps. Its graphs are up to 15 s
    behind now.
    """
    for name, value in _RARELY.items():
        environment.setdefault(name, value)


def worker_environment() -> dict[str, str]:
    """Return the wait policy, for workers of a cluster that another process started."""
    return {_WAIT_POLICY: os.environ.get(_WAIT_POLICY, "PASSIVE")}
