"""A job on a cluster of several nodes: one of them dies, and the run ends as if none had."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
from kit.serving import free_port
from kit.worlds import write_job
from ray.cluster_utils import Cluster

from dbray.records.results import read_summary
from dbray.spec.job import Job
from dbray.storage.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SUBJECTS = {"ace": "cat", "bob": "cat", "cid": "cat"}


@pytest.fixture
def nodes():
    """A head and a worker node of this machine, with 1 CPU each."""
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "dashboard_port": free_port()}
    )
    worker = cluster.add_node(num_cpus=1)
    yield cluster.address, worker
    cluster.shutdown()


def num_at_work(job: Job) -> int:
    summary = read_summary(Store(job.storage), job.id)
    return len(summary.in_flight) if summary else 0


def kill(node) -> None:
    """SIGKILL a node's raylet. Its workers notice when the process is gone: it is waited for."""
    [raylet] = node.all_processes["raylet"]
    raylet.process.kill()
    raylet.process.wait()


def test_a_node_that_dies_with_a_lane_costs_neither_the_run_nor_its_lease(
    nodes, tiny_base, tmp_path
):
    address, worker = nodes
    job_file = write_job(
        tmp_path, tiny_base, SUBJECTS,
        recipe={"steps": 500, "prior_weight": 0.0}, previews={"prompts": []},
        # Nobody is to wait for the end of a lease.
        resources={"lanes": 2, "lease_seconds": 3600},
    )  # fmt: skip
    command = [sys.executable, "-m", "dbray", "run", str(job_file), "--address", address]
    job = Job.load(job_file)
    with (tmp_path / "log.txt").open("w") as log, subprocess.Popen(command, stdout=log) as run:
        while run.poll() is None and num_at_work(job) < 2:
            time.sleep(0.1)
        kill(worker)
    assert run.returncode == 0, (tmp_path / "log.txt").read_text()
    results = tmp_path / "runs" / "jobs" / job.id / "results.jsonl"
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert {row["id"]: row["status"] for row in rows} == dict.fromkeys(SUBJECTS, "published")
    assert sorted(row["attempts"] for row in rows) == [1, 1, 2]
