"""A lane whose device breaks.

Nothing here can be made to break at will, so a fake is put into the workers' processes; queue, Ray
Train and the job around them are real.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import ray.train
import torch

from dbray import lane
from dbray.job import run_job


@pytest.fixture
def run(ray_session, tiny_base, tmp_path):
    """Run a job without previews; what became of each subject, in which attempt, and why."""
    # The workers import this module, and find none that lies beside it.
    from worlds import load_job

    def run(subjects, **changes):
        job = load_job(tmp_path, tiny_base, subjects, previews={"prompts": []}, **changes)
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
        setattr(lane, "finetune" if number == 1 else "encode_subject", break_down)
    lane._work(config)


@pytest.mark.ray
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_device_that_breaks_costs_an_attempt_and_no_subject(run, monkeypatch, num_workers):
    monkeypatch.setattr(lane, "_work", work_on_breaking_devices)
    recipe, resources = {"steps": 2, "prior_weight": 0.0}, {"gpus_per_subject": num_workers}
    found = run({"ace": "cat", "bob": "cat"}, recipe=recipe, resources=resources)
    assert found == dict.fromkeys(("ace", "bob"), ("published", 2, None))
