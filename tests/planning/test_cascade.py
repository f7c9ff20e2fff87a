"""What is wrong with the second stage of a cascade, and what a job of one resolves to."""

from __future__ import annotations

import pytest
from kit.families.super_resolution import SUPER_RESOLUTION, build_cascade
from kit.worlds import write_job

from dbray.hardware import Hardware
from dbray.planning.checks import check_file
from dbray.planning.cost import estimate
from dbray.planning.plan import make_plan
from dbray.storage.store import Store

RECIPE = {"resolution": 32, "steps": 5}


@pytest.fixture(scope="module")
def cascades(tmp_path_factory):
    return {name: build_cascade(tmp_path_factory.mktemp(name) / "base", name)
            for name in SUPER_RESOLUTION}  # fmt: skip


def check(folder, base, stage=None, **changes):
    changes["recipe"] = {**RECIPE, **changes.get("recipe", {})}
    section = {} if stage is None else {"super_resolution": stage}
    return check_file(write_job(folder, base, {"ace": "dog"}, **section, **changes))


@pytest.mark.parametrize(("name", "sampler", "guidance"), [
    ("deepfloyd_if_ii", "ddpm", 4.0), ("x4_upscaler", "ddim", 9.0),
])  # fmt: skip
def test_a_job_of_a_cascade_enlarges_by_the_defaults_of_its_network(
    cascades, tmp_path, name, sampler, guidance
):
    checked = check(tmp_path, cascades[name])
    assert checked.errors == []
    stage = checked.job.super_resolution
    assert (stage.sampler, stage.guidance, stage.noise_level) == (sampler, guidance, 0)
    assert stage.train
    assert stage.recipe.resolution == 32
    assert checked.base.super_resolution.scale == 4


def test_the_file_of_a_cascade_recommends_for_both_stages(cascades, tmp_path):
    folder = build_cascade(tmp_path / "base", "deepfloyd_if_ii")
    (folder / "dbray.yaml").write_text(
        "recipe: {steps: 7, resolution: 32}\n"
        "super_resolution: {noise_level: 3, steps: 9, recipe: {steps: 8}}\n"
    )
    file = write_job(tmp_path, folder, {"ace": "dog"}, super_resolution={"steps": 4})
    file.write_text(file.read_text().replace("steps: 8\n", "", 1))  # the job's own recipe.steps
    stage = check_file(file).job.super_resolution
    assert (stage.noise_level, stage.steps, stage.recipe.steps) == (3, 4, 8)
    assert stage.recipe.learning_rate == 5e-6  # of its family


@pytest.mark.parametrize(("stage", "changes", "what"), [
    ({"sampler": "euler"}, {}, "has no sampler 'euler'"),
    ({"noise_level": 351}, {}, "noise_level 351 is over the network's 350"),
    ({"recipe": {"crop": "bucket"}}, {}, "crop: bucket is for the first stage alone"),
    ({"recipe": {"stop": {}}}, {}, "stop is for the first stage alone"),
    ({"recipe": {"method": "full"}}, {"recipe": {"method": "lora"}, "resources": {"pack": 2}},
     "pack: 2"),
    ({}, {"prior": {"kind": "teacher"}}, "a teacher makes none"),
    ({}, {"resources": {"zero_stage": 1}}, "ZeRO divides the weights of one network"),
])  # fmt: skip
def test_what_a_second_stage_cannot_do_is_reported(cascades, tmp_path, stage, changes, what):
    [error] = check(tmp_path, cascades["x4_upscaler"], stage, **changes).errors
    assert what in error.what
    assert error.what.startswith("super_resolution: ")


def test_a_network_that_is_not_trained_has_no_obstacles(cascades, tmp_path):
    stage = {"train": False, "recipe": {"crop": "bucket"}}
    checked = check(tmp_path, cascades["x4_upscaler"], stage, prior={"kind": "teacher"})
    assert checked.errors == []


def test_a_section_without_a_network_is_refused(cascades, tmp_path):
    first = cascades["x4_upscaler"] / "first"
    [error] = check(tmp_path, first, {"noise_level": 0}).errors
    assert "has no super-resolution network; name one as super_resolution.base" in error.what
    stage = {"base": str(first)}
    [error] = check(tmp_path / "other", first, stage).errors
    assert "is not a super-resolution network" in error.what


def test_a_path_of_the_second_stage_is_relative_to_the_file(cascades, tmp_path):
    (tmp_path / "network").symlink_to(cascades["x4_upscaler"] / "super_resolution")
    first = cascades["x4_upscaler"] / "first"
    checked = check(tmp_path, first, {"base": "network"})
    assert checked.errors == []
    assert (tmp_path / "network").samefile(checked.job.super_resolution.base)


def third_of(cascades, **changes):
    return {"then": {"base": str(cascades["x4_upscaler"] / "super_resolution"), **changes}}


def test_a_third_network_is_found_and_only_draws(cascades, tmp_path):
    (tmp_path / "network").symlink_to(cascades["x4_upscaler"] / "super_resolution")
    ready = check(tmp_path, cascades["deepfloyd_if_ii"], {"then": {"base": "network"}}).ready()
    then = ready.job.super_resolution.then
    assert (tmp_path / "network").samefile(then.base)
    assert (then.sampler, then.guidance, then.noise_level) == ("ddim", 9.0, 20)
    assert ready.base.enlargement == 4 * 4
    alone = check(tmp_path / "alone", cascades["deepfloyd_if_ii"]).ready()
    plans = [make_plan(one, Store(one.job.storage)) for one in (ready, alone)]
    assert plans[0].to_train[0].fingerprint == plans[1].to_train[0].fingerprint
    previews = [estimate(plan, Hardware(2, 0), None).storage_bytes["previews"] for plan in plans]
    assert previews[0] == 16 * previews[1]


@pytest.mark.parametrize(("changes", "what"), [
    ({"sampler": "euler"}, "Stable Diffusion x4 upscaler has no sampler 'euler'"),
    ({"noise_level": 351}, "noise_level 351 is over the network's 350"),
    ({"base": None}, "it names no network"),
])  # fmt: skip
def test_what_is_wrong_with_a_third_network_is_reported(cascades, tmp_path, changes, what):
    stage = third_of(cascades, **changes)
    [error] = check(tmp_path, cascades["deepfloyd_if_ii"], stage).errors
    assert error.what.startswith(f"super_resolution.then: {what}")


def test_a_network_of_the_hub_needs_its_commit_under_its_own_key(cascades, tmp_path):
    for number, (stage, key) in enumerate((
        ({"base": "owner/name"}, "super_resolution.base_revision"),
        ({"then": {"base": "owner/name"}}, "super_resolution.then.base_revision"),
    )):  # fmt: skip
        [error] = check(tmp_path / str(number), cascades["deepfloyd_if_ii"], stage).errors
        assert f"set {key} to its commit" in error.what


def test_a_plan_counts_both_stages(cascades, tmp_path):
    costs = {}
    for train in (True, False):
        stage = {"train": train, "recipe": {"steps": 3}}
        ready = check(tmp_path / str(train), cascades["x4_upscaler"], stage).ready()
        plan = make_plan(ready, Store(ready.job.storage))
        costs[train] = estimate(plan, Hardware(num_cpus=2, num_gpus=0), None)
    assert costs[True].train_steps == 5 + 3
    assert costs[False].train_steps == 5
    assert costs[True].model_bytes > costs[False].model_bytes
    assert sum(costs[True].memory_bytes.values()) > sum(costs[False].memory_bytes.values())
