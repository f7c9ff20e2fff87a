"""How processes of dbray use cores and wait."""

from __future__ import annotations

import os

import pytest

from dbray import processes


def test_environment_variables_of_the_user_are_kept():
    own = {"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "7"}
    environment = dict(own)
    processes.wait_passively(environment)
    processes.use_own_cores(environment)
    assert environment == own


def test_a_local_ray_looks_as_often_as_the_user_wants():
    environment = {"METRICS_RECORD_INTERVAL_S": "5"}
    processes.look_rarely(environment)
    assert environment["METRICS_RECORD_INTERVAL_S"] == "5"


def test_workers_on_other_nodes_wait_as_this_process_does(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert processes.worker_environment() == {"OMP_WAIT_POLICY": "PASSIVE"}
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert processes.worker_environment() == {"OMP_WAIT_POLICY": "ACTIVE"}


@pytest.mark.parametrize(
    ("limit", "cores"),
    [("max 100000", 8), ("200000 100000", 2), ("50000 100000", 1), ("9900000 100000", 8), ("", 8)],
)
def test_the_cpu_limit_of_a_container_is_used(tmp_path, monkeypatch, limit, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    (tmp_path / "cpu.max").write_text(limit)
    assert processes.num_cores(tmp_path / "cpu.max") == cores
    assert processes.num_cores(tmp_path / "none") == 8
