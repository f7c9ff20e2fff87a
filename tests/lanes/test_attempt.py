"""Attempts that stop early, in the slots of a lane, without Ray."""

from __future__ import annotations

import pytest
import torch
from kit.embedders import BUILDERS
from kit.records import files_of
from kit.worlds import write_job

from dbray.lanes.attempt import Attempt
from dbray.lanes.beat import Beat, Clock
from dbray.lanes.lane import Lane
from dbray.planning.checks import check_file
from dbray.planning.plan import make_plan
from dbray.records.models import Registry
from dbray.storage.store import Store
from dbray.training.batches import Share

STOP = {"every": 2, "patience": 2, "tolerance": 0.0, "learnt": 0.0, "max_drift": 2.0, "images": 1,
        "sampling_steps": 2}  # fmt: skip


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    return str(BUILDERS["vit"](tmp_path_factory.mktemp("embedder") / "vit"))


@pytest.fixture
def plan_of(tmp_path, tiny_base, embedder):
    """Plan two subjects of a job that stops early."""

    def plan_of(name, method):
        recipe = {"method": method, "steps": 12, "learning_rate": 0.01, "prior_weight": 0.0,
                  "stop": STOP}  # fmt: skip
        file = write_job(
            tmp_path / name, tiny_base, {"ace": "cat", "rex": "dog"}, recipe=recipe,
            scoring={"embedder": embedder}, resources={"checkpoint_every": 3},
        )  # fmt: skip
        ready = check_file(file).ready()
        return make_plan(ready, Store(ready.job.storage))

    return plan_of


def train(plan, num_slots, last_step=None):
    """Train the subjects of a plan in the slots of one lane, or break off after a step."""
    beat = Beat(None, "", leads=False)
    lane = Lane(plan.job, plan.base, num_slots, Share(), torch.device("cpu"), beat)
    attempts = {}
    for slot, planned in enumerate(plan.subjects[:num_slots]):
        attempts[slot] = attempt = Attempt(lane, slot, planned, Clock())
        beat.begin(planned.subject.id)
        attempt.encode()
        attempt.begin()
    while attempts:
        lane.pack.step({slot: attempt.course for slot, attempt in attempts.items()})
        for slot, attempt in list(attempts.items()):
            attempt.finish_step()
            if attempt.is_published or attempt.course.step == last_step:
                del attempts[slot]


def published(plan, subject_id):
    """Return the weight files, the curve without its times, and the steps of a model."""
    record = Registry(Store(plan.job.storage)).find(subject_id)
    curve = [point[:3] for point in record.fidelity]
    return files_of(plan.job, subject_id), curve, record.steps


@pytest.mark.parametrize("num_slots", [1, 2])
def test_a_broken_attempt_continues_to_the_same_model(plan_of, num_slots):
    whole, broken = plan_of("whole", "lora"), plan_of("broken", "lora")
    train(whole, num_slots)
    for last_step in (2, 5):  # before a checkpoint, and after one
        train(broken, num_slots, last_step)
    train(broken, num_slots)
    for planned in whole.subjects[:num_slots]:
        found = published(whole, planned.subject.id)
        assert published(broken, planned.subject.id) == found
        _, curve, steps = found
        taken = [step for step, *_ in curve]
        assert taken == list(range(2, taken[-1] + 1, 2))
        assert steps in taken
        assert taken[-1] == min(12, steps + STOP["patience"] * STOP["every"])


@pytest.mark.parametrize("method", ["full", "textual_inversion", "pivotal"])
def test_every_method_publishes_its_best_checkpoint(plan_of, method):
    plan = plan_of("job", method)
    train(plan, 1)
    files, curve, steps = published(plan, "ace")
    assert files
    assert steps in [step for step, *_ in curve]
