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


@pytest.fixture
def cluster(request):
    """A head of this machine with so many CPUs."""
    head = {"num_cpus": request.param, "dashboard_port": free_port()}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    cluster.shutdown()


@pytest.fixture
def run(tiny_base, tmp_path):
    """Run a job of cats, calling something while its lanes are at work. Returns the attempts."""

    def run(address, subjects, num_lanes, meanwhile):
        job_file = write_job(
            tmp_path, tiny_base, dict.fromkeys(subjects, "cat"),
            recipe={"steps": 500, "prior_weight": 0.0}, previews={"prompts": []},
            # Nobody is to wait for the end of a lease.
            resources={"lanes": num_lanes, "lease_seconds": 3600},
        )  # fmt: skip
        command = [sys.executable, "-m", "dbray", "run", str(job_file), "--address", address]
        job = Job.load(job_file)
        with (tmp_path / "log.txt").open("w") as log, subprocess.Popen(command, stdout=log) as run:
            while run.poll() is None and num_at_work(job) < num_lanes:
                time.sleep(0.1)
            meanwhile()
        assert run.returncode == 0, (tmp_path / "log.txt").read_text()
        results = Store(job.storage).read_bytes(f"jobs/{job.id}/results.jsonl")
        rows = [json.loads(line) for line in results.splitlines()]
        assert {row["id"]: row["status"] for row in rows} == dict.fromkeys(subjects, "published")
        return sorted(row["attempts"] for row in rows)

    return run


def num_at_work(job: Job) -> int:
    summary = read_summary(Store(job.storage), job.id)
    return len(summary.in_flight) if summary else 0


def kill(node) -> None:
    """SIGKILL a node's raylet. Its workers notice when the process is gone: it is waited for."""
    [raylet] = node.all_processes["raylet"]
    raylet.process.kill()
    raylet.process.wait()


@pytest.mark.parametrize("cluster", [1], indirect=True)
def test_a_node_that_dies_with_a_lane_costs_neither_the_run_nor_its_lease(cluster, run):
    worker = cluster.add_node(num_cpus=1)
    attempts = run(cluster.address, ("ace", "bob", "cid"), 2, lambda: kill(worker))
    assert attempts == [1, 1, 2]


@pytest.mark.parametrize("cluster", [0], indirect=True)
def test_a_lane_restarts_on_another_node(cluster, run):
    """The only lane loses its node, and finds a new one."""
    worker = cluster.add_node(num_cpus=1)

    def replace():
        cluster.add_node(num_cpus=1, wait=False)
        kill(worker)

    assert run(cluster.address, ("ace", "bob"), 1, replace) == [1, 2]
