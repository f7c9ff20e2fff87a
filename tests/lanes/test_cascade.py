"""Both stages of a cascade in one lane: trained, published, resumed and reset, without Ray."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from kit.families.super_resolution import SUPER_RESOLUTION, build_cascade
from kit.records import files_of
from kit.worlds import write_job

from dbray.lanes.attempt import Attempt
from dbray.lanes.beat import Beat, Clock
from dbray.lanes.lane import Lane
from dbray.planning.checks import check_file
from dbray.planning.plan import Plan, make_plan
from dbray.records.models import ModelRecord, Registry
from dbray.records.prior_sets import DESCRIPTION, encode_part, part_name
from dbray.storage.store import Store
from dbray.subjects.images import encode_png
from dbray.training.batches import Share

LORA = {"kind": "lora", "rank": 4}
STEPS = {"first": 5, "second": 4}


@pytest.fixture(scope="module")
def cascades(tmp_path_factory):
    return {name: build_cascade(tmp_path_factory.mktemp(name) / "base", name)
            for name in SUPER_RESOLUTION}  # fmt: skip


def plan_of(folder: Path, cascade: Path, subjects=("ace", "rex"), **changes) -> Plan:
    """Plan a job of a cascade whose class images are there."""
    method = changes.pop("method", "full")
    recipe = {"method": method, "learning_rate": 0.01, "publish_precision": "fp32"}
    stage = {"recipe": {**recipe, "steps": STEPS["second"], "resolution": 32}}
    stage |= changes.pop("super_resolution", {})
    file = write_job(
        folder, cascade, dict.fromkeys(subjects, "dog"),
        recipe={**recipe, "steps": STEPS["first"], "resolution": 32}, super_resolution=stage,
        prior={"count": 3}, resources=changes.pop("resources", {"checkpoint_every": 2}),
    )  # fmt: skip
    ready = check_file(file).ready()
    store = Store(ready.job.storage)
    plan = make_plan(ready, store)
    for prior in plan.missing_priors:
        draw = np.random.default_rng(int(prior.digest[:8], 16))
        side = 8 if prior.enlarging is None else 32
        images = draw.integers(0, 255, (3, side, side, 3), dtype=np.uint8)
        data = encode_part(range(3), range(3), [encode_png(image) for image in images])
        store.write_bytes(f"{prior.folder}/{part_name(0)}", data)
        store.write_json(f"{prior.folder}/{DESCRIPTION}", {})
        store.seal(prior.folder, prior.files)
    return plan


def lane_of(plan: Plan, num_slots: int = 1) -> Lane:
    beat = Beat(None, "", leads=False)
    packed = plan.job.resources.model_copy(update={"pack": num_slots})
    job = plan.job.model_copy(update={"resources": packed})
    return Lane(job, plan.base, plan.measure, Share(), torch.device("cpu"), beat)


def train(lane: Lane, plan: Plan, ids, num_taken: int | None = None) -> None:
    """Train subjects in the slots of a lane together, or break off after so many steps."""
    attempts = {}
    for slot, name in enumerate(ids):
        [planned] = [one for one in plan.subjects if one.subject.id == name]
        attempts[slot] = attempt = Attempt(lane, slot, planned, Clock())
        lane.beat.begin(name)
        attempt.encode()
        attempt.begin()
    taken = 0
    while attempts and taken != num_taken:
        lane.step(attempts)
        taken += 1
        for slot, attempt in list(attempts.items()):
            attempt.finish_step()
            if attempt.is_published:
                del attempts[slot]


def record_of(plan: Plan, name: str) -> ModelRecord:
    return Registry(Store(plan.job.storage)).find(name)


@pytest.mark.parametrize("method", ["full", LORA], ids=["full", "lora"])
@pytest.mark.parametrize("name", SUPER_RESOLUTION)
def test_a_record_holds_both_stages_and_the_level(cascades, tmp_path, name, method):
    stage = {"noise_level": 7}
    plan = plan_of(tmp_path, cascades[name], method=method, super_resolution=stage)
    assert len(plan.missing_priors) == 2
    train(lane_of(plan), plan, ["ace"])
    record = record_of(plan, "ace")
    file = "unet.safetensors" if method == "full" else "lora.safetensors"
    assert record.files == (file, f"super_resolution_{file}")
    assert record.super_resolution.noise_level == 7
    assert record.super_resolution_digest == plan.base.super_resolution.digest
    assert record.super_resolution_prior_digest == plan.subjects[0].enlarged_digest
    assert record.super_resolution_loss[-1][0] == STEPS["second"]
    assert record.loss[-1][0] == record.steps == STEPS["first"]


@pytest.mark.parametrize("method", ["full", LORA], ids=["full", "lora"])
@pytest.mark.parametrize("name", SUPER_RESOLUTION)
def test_what_came_before_in_the_lane_changes_no_stage(cascades, tmp_path, name, method):
    alone = plan_of(tmp_path / "alone", cascades[name], method=method)
    train(lane_of(alone), alone, ["rex"])
    after = plan_of(tmp_path / "after", cascades[name], method=method)
    lane = lane_of(after)
    train(lane, after, ["ace"], num_taken=STEPS["first"] + 2)  # broken off in the second stage
    train(lane, after, ["rex"])
    assert files_of(after.job, "rex") == files_of(alone.job, "rex")


@pytest.mark.parametrize("num_taken", [3, STEPS["first"], STEPS["first"] + 3])
@pytest.mark.parametrize("name", SUPER_RESOLUTION)
def test_a_kill_in_either_stage_or_between_them_changes_no_bit(cascades, tmp_path, name, num_taken):
    whole = plan_of(tmp_path / "whole", cascades[name])
    train(lane_of(whole), whole, ["ace"])
    broken = plan_of(tmp_path / "broken", cascades[name])
    train(lane_of(broken), broken, ["ace"], num_taken)
    train(lane_of(broken), broken, ["ace"])
    assert files_of(broken.job, "ace") == files_of(whole.job, "ace")
    before, after = record_of(whole, "ace"), record_of(broken, "ace")
    assert after.super_resolution_loss == before.super_resolution_loss
    assert after.loss == before.loss
    assert not list((Path(broken.job.storage) / "jobs").rglob("rank-*"))


@pytest.mark.parametrize("name", SUPER_RESOLUTION)
def test_company_changes_no_bit(cascades, tmp_path, name):
    pack = {"pack": 2}
    alone = plan_of(tmp_path / "alone", cascades[name], method=LORA, resources=pack)
    train(lane_of(alone, 2), alone, ["rex"])
    both = plan_of(tmp_path / "both", cascades[name], method=LORA, resources=pack)
    train(lane_of(both, 2), both, ["ace", "rex"])
    assert files_of(both.job, "rex") == files_of(alone.job, "rex")
    assert files_of(both.job, "ace") != files_of(both.job, "rex")


def test_a_second_stage_that_is_not_trained_is_recorded(cascades, tmp_path):
    plan = plan_of(tmp_path, cascades["x4_upscaler"], super_resolution={"train": False})
    assert len(plan.missing_priors) == 1
    train(lane_of(plan), plan, ["ace"])
    record = record_of(plan, "ace")
    assert record.files == ("unet.safetensors",)
    assert record.super_resolution.train is False


def test_fingerprints_depend_on_the_second_stage(cascades, tmp_path):
    changes = [
        {}, {"noise_level": 1}, {"train": False}, {"recipe": {"steps": 9}},
        {"recipe": {"steps": 9}, "steps": 3}, {"recipe": {"steps": 9}, "guidance": 2.0},
    ]  # fmt: skip
    found = [plan_of(tmp_path / str(number), cascades["x4_upscaler"], super_resolution=one)
             .subjects[0].fingerprint for number, one in enumerate(changes)]  # fmt: skip
    assert len(set(found)) == len(changes)
    first = plan_of(tmp_path / "first", cascades["x4_upscaler"] / "first", super_resolution={
        "base": str(cascades["x4_upscaler"] / "super_resolution"),
    })  # fmt: skip
    assert first.subjects[0].fingerprint == found[0]
