"""What does the death of a node cost? SIGKILL of the raylets of worker nodes, at random moments.

Each round starts a cluster on this machine, runs the job on it once, and kills every worker node
meanwhile; some of the dead nodes, chosen at random, are replaced after a few seconds. The run has
to end with 0. Started by `kills.py --nodes 3`.
"""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster

_REPLACED_AFTER_SECONDS = 5.0
_DEADLINE_SECONDS = 900.0
_STORE_BYTES = 150 * 2**20


@dataclass(frozen=True)
class Kill:
    """The death of a node."""

    at_seconds: float
    is_replaced: bool


@dataclass(frozen=True)
class Run:
    """A run of the job, and what happened to its nodes."""

    exit_code: int
    seconds: float
    kills: tuple[Kill, ...]


def free_port() -> int:
    """A free port for the dashboard: other clusters on this machine have their own."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Nodes:
    """A cluster on this machine: a head with the driver, and worker nodes, with 1 CPU each."""

    def __init__(self, count: int) -> None:
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 1,
                "object_store_memory": _STORE_BYTES,
                "dashboard_port": free_port(),
            },
        )
        self._workers = [self._cluster.add_node(num_cpus=1) for _ in range(count - 1)]

    @property
    def address(self) -> str:
        """The cluster's address."""
        return str(self._cluster.address)

    def kill(self) -> None:
        """SIGKILL the raylet of the oldest worker node. Its workers end when the process is gone.

        It is waited for: a zombie would seem alive to them.
        """
        [raylet] = self._workers.pop(0).all_processes["raylet"]
        raylet.process.kill()
        raylet.process.wait()

    def add(self) -> None:
        """Start another worker node."""
        self._workers.append(self._cluster.add_node(num_cpus=1, wait=False))

    def stop(self) -> None:
        """End every process of the cluster."""
        self._cluster.shutdown()


def run(job: Path, count: int, kills: tuple[Kill, ...] = ()) -> Run:
    """Run the job on a new cluster, and kill nodes meanwhile."""
    nodes = Nodes(count)
    try:
        with (job.parent / "log.txt").open("a") as log:
            command = [sys.executable, "-m", "dbray", "run", str(job), "--address", nodes.address]
            process = subprocess.Popen(command, stdout=log, stderr=log)
        began = time.monotonic()
        done = []
        for kill in sorted(kills, key=lambda one: one.at_seconds):
            if not _is_running(process, began + kill.at_seconds):
                break
            nodes.kill()
            done.append(kill)
            if kill.is_replaced and _is_running(
                process, time.monotonic() + _REPLACED_AFTER_SECONDS
            ):
                nodes.add()
        code = _wait(process)
        return Run(code, time.monotonic() - began, tuple(done))
    finally:
        nodes.stop()


def _is_running(process: subprocess.Popen[bytes], until: float) -> bool:
    """Wait until a time; return whether the process is still running."""
    try:
        process.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        return True
    return False


def _wait(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(_DEADLINE_SECONDS)
    except subprocess.TimeoutExpired:
        psutil.Process(process.pid).kill()
        return process.wait()


def draw(rng: random.Random, count: int, seconds: float) -> tuple[Kill, ...]:
    """A death of each worker node, at a random moment of a run of `seconds`."""
    return tuple(
        Kill(round(rng.uniform(3.0, seconds), 1), rng.random() < 0.5) for _ in range(count - 1)
    )


def longest_wait(job: Path) -> float:
    """Longest time that a lane waited for a subject that it then trained."""
    records = (job.parent / "runs" / "models").glob("*/*/model.json")
    waits = (json.loads(record.read_text())["timings"]["lease"] for record in records)
    return max(waits, default=0.0)


def facts(found: Run, job: Path) -> dict[str, Any]:
    """The figures of a run."""
    return {
        "kills_at_seconds": [kill.at_seconds for kill in found.kills],
        "replaced": [kill.is_replaced for kill in found.kills],
        "exit_code": found.exit_code,
        "seconds": round(found.seconds, 1),
        "longest_wait_seconds": round(longest_wait(job), 2),
    }
