"""The resources that lanes request, and the end of one without room; test_job.py runs lanes."""

from __future__ import annotations

import threading
import time

import pytest
import ray
from kit.processes import started
from kit.worlds import add_class_images, load_job

from dbray.hardware import Hardware
from dbray.lanes import group
from dbray.planning.checks import check_job
from dbray.planning.plan import make_plan
from dbray.run.job import run_job
from dbray.run.watch import Silence
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


def test_a_lane_without_room_ends_with_the_job(ray_session, tiny_base, tmp_path, monkeypatch):
    """Else its thread would end the whole process when Ray is shut down."""
    monkeypatch.setattr(group, "_JOIN_SECONDS", 5.0)
    num_free = int(ray.available_resources()["CPU"])
    guest = ray.remote(num_cpus=num_free - 1)(Guest).remote()
    ray.get(guest.stay.remote())
    job = load_job(tmp_path, tiny_base, {"ace": "cat", "bob": "cat"},
                   previews={"prompts": []}, resources={"lanes": 2})  # fmt: skip
    add_class_images(job)
    result = run_job(job)
    ray.kill(guest)
    assert result.summary.counts["published"] == 2
    assert [one.name for one in threading.enumerate() if one.name.startswith("lane-")] == []
    wait_for_cpus(num_free)  # what the lane waited for is not taken when it becomes free


class Usurper(Silence):
    """Kills the controller of a lane in training."""

    killed = False

    def progress(self, phase, done, total, detail=""):
        if phase == "training" and detail and not self.killed:
            self.killed = True
            started("TrainController")[0].kill()


def test_the_room_of_a_lane_whose_controller_dies_is_free_again(ray_session, tiny_base, tmp_path):
    num_free = ray.available_resources()["CPU"]
    job = load_job(tmp_path, tiny_base, {"ace": "cat", "bob": "cat"}, recipe={"steps": 400},
                   previews={"prompts": []}, resources={"lanes": 2})  # fmt: skip
    add_class_images(job)
    usurper = Usurper()
    result = run_job(job, watch=usurper)
    assert usurper.killed
    assert result.summary.counts["published"] == 2
    wait_for_cpus(num_free)


def wait_for_cpus(count: float) -> None:
    """Wait until so many are free, in Ray's view, which is a little late."""
    give_up = time.monotonic() + 30
    while ray.available_resources().get("CPU") != count:
        assert time.monotonic() < give_up
        time.sleep(0.1)


class Guest:
    """Another job's actor, which takes all CPUs but one."""

    def stay(self):
        """Wait until it has been placed."""
