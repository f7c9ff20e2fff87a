"""Early stopping in a job: what it needs, and what of it is part of a fingerprint."""

from __future__ import annotations

import shutil

import pytest
from kit.embedders import BUILDERS
from kit.worlds import write_job

from dbray.planning.checks import check_file
from dbray.planning.plan import make_plan
from dbray.storage.store import Store


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    return BUILDERS["vit"](tmp_path_factory.mktemp("embedder") / "vit")


@pytest.fixture
def check(tmp_path, tiny_base):
    """Check a job that stops early, with changes."""

    def check(**changes):
        recipe = {"stop": {"every": 2}} | changes.pop("recipe", {})
        return check_file(write_job(tmp_path, tiny_base, {"rex": "dog"}, recipe=recipe, **changes))

    return check


def fingerprint(checked) -> str:
    ready = checked.ready()
    [planned] = make_plan(ready, Store(ready.job.storage)).subjects
    return planned.fingerprint


def test_a_job_that_stops_early_needs_an_embedder(check, embedder):
    [error] = check().errors
    assert "has no embedder" in error.what
    assert check(scoring={"embedder": str(embedder)}).errors == []


def test_zero_cannot_stop_early(check, embedder):
    [error] = check(scoring={"embedder": str(embedder)}, resources={"zero_stage": 1}).errors
    assert "ZeRO" in error.what
    assert "zero_stage to 0" in error.fix


def test_an_interval_as_long_as_training_is_warned_of(check, embedder):
    checked = check(scoring={"embedder": str(embedder)}, recipe={"stop": {"every": 8}})
    assert checked.errors == []
    assert any("never stops early" in problem.fix for problem in checked.problems)


def test_all_that_decides_when_to_stop_is_in_the_fingerprint(check, embedder, tmp_path):
    scoring = {"embedder": str(embedder)}
    usual = fingerprint(check(scoring=scoring))
    other = shutil.copytree(embedder, tmp_path / "other")
    processor = other / "preprocessor_config.json"
    assert fingerprint(check(scoring={"embedder": str(other)})) == usual  # its digest alone counts
    processor.write_text(processor.read_text() + "\n")
    assert fingerprint(check(scoring={"embedder": str(other)})) != usual
    assert fingerprint(check(scoring=scoring, recipe={"stop": {"every": 4}})) != usual
    assert fingerprint(check(scoring=scoring, previews={"guidance": 3.0})) == usual


def test_an_embedder_is_not_in_the_fingerprint_of_a_job_that_takes_all_steps(check, embedder):
    plain = {"stop": None}
    assert fingerprint(check(recipe=plain)) == fingerprint(
        check(recipe=plain, scoring={"embedder": str(embedder)})
    )
