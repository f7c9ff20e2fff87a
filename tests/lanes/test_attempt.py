"""Attempts that stop early, in the slots of a lane, without Ray."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kit.embedders import BUILDERS
from kit.records import files_of
from kit.worlds import load_job, write_job

from dbray.errors import BaseError
from dbray.lanes.attempt import Attempt
from dbray.lanes.beat import Beat, Clock
from dbray.lanes.lane import Lane
from dbray.planning.checks import check_file, check_job
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


def lane_of(plan, num_slots, beat):
    packed = plan.job.resources.model_copy(update={"pack": num_slots})
    job = plan.job.model_copy(update={"resources": packed})
    return Lane(job, plan.base, plan.measure, Share(), torch.device("cpu"), beat)


def train(plan, num_slots, last_step=None):
    """Train the subjects of a plan in the slots of one lane, or break off after a step.

    Returns the clock of each attempt.
    """
    beat = Beat(None, "", leads=False)
    lane = lane_of(plan, num_slots, beat)
    attempts, clocks = {}, []
    for slot, planned in enumerate(plan.subjects[:num_slots]):
        clocks.append(Clock())
        attempts[slot] = attempt = Attempt(lane, slot, planned, clocks[-1])
        beat.begin(planned.subject.id)
        attempt.encode()
        attempt.begin()
    while attempts:
        lane.step(attempts)
        for slot, attempt in list(attempts.items()):
            attempt.finish_step()
            if attempt.is_published or attempt.course.step == last_step:
                del attempts[slot]
    return clocks


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


def test_a_continued_attempt_counts_the_steps_since_its_checkpoint(plan_of):
    plan = plan_of("job", "lora")
    train(plan, 1, last_step=5)  # the checkpoint is at step 3
    [clock] = train(plan, 1)
    _, curve, _ = published(plan, "ace")
    assert clock.steps == curve[-1][0] - 3


def test_a_lane_looks_for_a_hub_base_on_its_own_node(tiny_base, tmp_path, monkeypatch):
    """Only the first process has it in its cache, like a driver on a separate node."""
    commit, cache = "c" * 40, tmp_path / "cache"
    shutil.copytree(tiny_base, cache / "models--owner--name" / "snapshots" / commit)
    with monkeypatch.context() as on_the_driver:
        on_the_driver.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
        job = load_job(tmp_path, Path("owner/name"), {"ace": "cat"}, base_revision=commit)
        plan = make_plan(check_job(job).ready(), Store(job.storage))
    with pytest.raises(BaseError, match=r"base 'owner/name': .* cannot be downloaded from the hub"):
        lane_of(plan, 1, Beat(None, "", leads=False))


def test_a_lane_rejects_an_embedder_that_is_not_the_plans(plan_of):
    plan = plan_of("job", "lora")
    other = replace(plan.measure.embedder, digest="0" * 64)
    planned = replace(plan, measure=replace(plan.measure, embedder=other))
    with pytest.raises(BaseError, match="not what the job began with; copy it to all nodes"):
        lane_of(planned, 1, Beat(None, "", leads=False))


@pytest.mark.parametrize("method", ["full", "textual_inversion", "pivotal"])
def test_every_method_publishes_its_best_checkpoint(plan_of, method):
    plan = plan_of("job", method)
    train(plan, 1)
    files, curve, steps = published(plan, "ace")
    assert files
    assert steps in [step for step, *_ in curve]
