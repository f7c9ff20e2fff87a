"""A lane whose device breaks, and one whose storage is slow.

Real devices and storage do not break or slow down on demand, so the workers' processes get fakes;
the queue, Ray Train and the job are real.
"""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray.train
import torch

from dbray.lanes import beat, material, prior_latents, worker
from dbray.lanes.checkpoint import Checkpoint
from dbray.lanes.leases import LeaseQueue
from dbray.records.models import Registry
from dbray.run.job import run_job
from dbray.training.batches import Share
from dbray.training.pack import Alone

STORAGE = [
    (material, "read_uri"),
    (prior_latents, "read_latents"),
    (prior_latents, "load_images"),
    (prior_latents, "keep_latents"),
    (Checkpoint, "restore"),
    (Checkpoint, "save"),
    (Registry, "publish"),
]
"""Everything that a worker may wait for."""


@pytest.fixture
def run(ray_session, tiny_base, tmp_path):
    """Run a job without previews; returns each subject's status, attempt and error."""
    # The workers import this module, but cannot import the modules next to it.
    from kit.worlds import add_class_images, load_job

    def run(subjects, **changes):
        job = load_job(tmp_path, tiny_base, subjects, previews={"prompts": []}, **changes)
        add_class_images(job)
        return {one.id: (one.status, one.attempts, one.error) for one in run_job(job).outcomes}

    return run


def break_down(*args, **kwargs):
    raise torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered")


def work_on_breaking_devices(config):
    """The last rank's device breaks twice: in training and, after the restart, in encoding."""
    spec, rank = config["spec"], ray.train.get_context().get_world_rank()
    starts = Path(spec.job.storage).parent / f"starts-of-{rank}"
    with starts.open("a+") as file:
        file.write("x")
    number = len(starts.read_text())
    if rank == spec.job.resources.gpus_per_subject - 1 and number <= 2:
        setattr(*((Alone, "step") if number == 1 else (material, "encode_subject")), break_down)
    worker._work(config)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_broken_device_costs_an_attempt_but_no_subject(run, monkeypatch, num_workers):
    monkeypatch.setattr(worker, "_work", work_on_breaking_devices)
    recipe, resources = {"steps": 2, "prior_weight": 0.0}, {"gpus_per_subject": num_workers}
    found = run({"ace": "cat", "bob": "cat"}, recipe=recipe, resources=resources)
    assert found == dict.fromkeys(("ace", "bob"), ("published", 2, None))


def count_beats() -> threading.Semaphore:
    """Count the beats that this process sends to the queue from now on."""
    beats, now = threading.Semaphore(0), beat.Beat.now

    def counted(beat):
        now(beat)
        beats.release()

    beat.Beat.now = counted
    return beats


def wait_for_two(beats: threading.Semaphore) -> None:
    """Wait for two more beats: the second one began after this call."""
    while beats.acquire(blocking=False):
        pass
    if not (beats.acquire(timeout=30) and beats.acquire(timeout=30)):
        raise TimeoutError("the lane fell silent")


def work_with_slow_storage(config):
    """Delay every response of storage until the lane has sent a beat."""
    beat._BEAT_SECONDS = 0.01
    beats, answered = count_beats(), Path(config["spec"].job.storage).parent / "answered"

    def slow(real, name):
        def answer(*args, **kwargs):
            wait_for_two(beats)
            with answered.open("a") as file:
                file.write(f"{name}\n")
            return real(*args, **kwargs)

        return answer

    for owner, name in STORAGE:
        setattr(owner, name, slow(getattr(owner, name), name))
    worker._work(config)


@pytest.mark.ray
@pytest.mark.slow
def test_a_lane_sends_beats_while_it_waits_for_storage(run, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "_work", work_with_slow_storage)
    found = run({"ace": "cat"}, recipe={"steps": 4}, resources={"checkpoint_every": 2})
    assert found == {"ace": ("published", 1, None)}
    answered = (tmp_path / "answered").read_text().split()
    assert set(answered) == {name for _, name in STORAGE}


class EmptyAttempt:
    """An attempt without any work."""

    def __init__(self, lane, slot, planned, clock):
        self.subject_id, self.clock = planned.subject.id, clock

    def encode(self):
        pass

    begin = encode


def test_a_lane_asks_for_another_subject_as_soon_as_one_has_ended(monkeypatch):
    """Two lanes share four subjects: a third one beside two others is refused, but not beside one.

    No time passes.
    """
    subjects = [SimpleNamespace(subject=SimpleNamespace(id=name, class_noun="cat"))
                for name in ("ace", "bob", "cid", "dot")]  # fmt: skip
    queue = LeaseQueue(subjects, 2, 10.0, lambda: 0.0, num_lanes=2)
    monkeypatch.setattr(LeaseQueue, "_end", lambda *_, **__: None)  # outcomes of real subjects
    calls = {name: SimpleNamespace(remote=getattr(queue, name)) for name in ("lease", "complete")}
    handle = SimpleNamespace(**calls)
    monkeypatch.setattr(worker, "Attempt", EmptyAttempt)
    monkeypatch.setattr(worker.ray, "get", lambda found: found)
    monkeypatch.setattr(worker.time, "monotonic", lambda: 0.0)
    lane = object.__new__(worker._Worker)
    lane._spec, lane._queue = SimpleNamespace(name="lane-0"), handle
    lane._lane = SimpleNamespace(leads=True, share=Share(), num_slots=3)
    lane._beat, lane._attempts, lane._ask_after = beat.Beat(None, "", leads=False), {}, 0.0
    lane._fill()
    assert len(lane._attempts) == 2
    lane._end(lane._attempts.pop(0), None)
    lane._fill()
    assert len(lane._attempts) == 2


def test_a_lease_lasts_during_a_wait_and_no_longer(monkeypatch):
    monkeypatch.setattr(beat, "_BEAT_SECONDS", 0.01)
    monkeypatch.setattr(beat.Beat, "now", beat.Beat.now)  # counted below; restored at the end
    beats, now = count_beats(), [0.0]
    ace = SimpleNamespace(subject=SimpleNamespace(id="ace", class_noun="cat"))
    queue = LeaseQueue([ace], 2, 10.0, lambda: now[0])
    queue.lease("lane-0")
    handle = SimpleNamespace(beat=SimpleNamespace(remote=queue.beat))
    signs = beat.Beat(handle, "lane-0", leads=True)
    signs.begin("ace")
    with signs.meanwhile():
        for _ in range(3):
            now[0] += 9.0
            wait_for_two(beats)
    assert queue.lease("lane-1") == (None, False)
    now[0] += 11.0  # no longer: a lane that hangs in a step must lose it
    assert queue.lease("lane-1") == ((ace, 2), False)
