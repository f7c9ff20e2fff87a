"""The resources that lanes request; tests/run/test_job.py runs lanes."""

from __future__ import annotations

import pytest
from kit.worlds import load_job

from dbray.hardware import Hardware
from dbray.lanes import group
from dbray.planning.checks import check_job
from dbray.planning.plan import make_plan
from dbray.storage.store import Store

pytestmark = pytest.mark.ray


@pytest.mark.parametrize(
    ("device", "gpus", "use_gpu"),
    [
        ("auto", 0, False),
        ("auto", 2, True),
        ("cpu", 2, False),
        ("cuda", 0, True),  # GPUs that the cluster adds on request
    ],
)
def test_lanes_request_the_resources_of_their_device(
    ray_session, tiny_base, tmp_path, monkeypatch, device, gpus, use_gpu
):
    job = load_job(tmp_path, tiny_base, {"ace": "cat"}, resources={"device": device})
    asked = []
    monkeypatch.setattr(group, "hardware", lambda: Hardware(num_cpus=8, num_gpus=gpus))
    monkeypatch.setattr(group, "run_lane", asked.append)
    plan = make_plan(check_job(job).ready(), Store(job.storage))
    with group.open_lanes(plan, plan.to_train, 2, "scratch", on_lost=pytest.fail):
        """Nothing to do but to open them."""
    assert {spec.name: spec.use_gpu for spec in asked} == {"lane-0": use_gpu, "lane-1": use_gpu}
