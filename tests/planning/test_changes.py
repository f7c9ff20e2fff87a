"""Why a published subject would be trained again."""

from __future__ import annotations

import pytest
from kit import records
from kit.worlds import load_job

from dbray.planning.changes import changes, renamed
from dbray.planning.checks import check_job
from dbray.planning.plan import make_plan
from dbray.records.models import Registry
from dbray.storage.store import Store


def plan_of(job):
    return make_plan(check_job(job).ready(), Store(job.storage))


@pytest.fixture
def job(tmp_path, tiny_base):
    job = load_job(tmp_path, tiny_base, {"rex": "dog", "tom": "dog"})
    plan = plan_of(job)
    for planned in plan.to_train:
        records.publish(job.storage, records.record_of(plan, planned))
    return job


def changed(job, section, **fields):
    section_now = getattr(job, section).model_copy(update=fields)
    plan = plan_of(job.model_copy(update={section: section_now}))
    return changes(plan, Registry(Store(job.storage)))


def test_kept_subjects_have_no_changes(job):
    assert changes(plan_of(job), Registry(Store(job.storage))) == {}


def test_different_fields_are_listed(job):
    assert changed(job, "recipe", steps=600, seed=3) == dict.fromkeys(
        ("rex", "tom"), ("recipe.steps 8 -> 600", "recipe.seed 0 -> 3")
    )
    assert changed(job, "prior", count=80)["rex"] == ("prior.count 6 -> 80",)


def test_other_photographs_are_listed_as_a_change(job, tmp_path):
    (tmp_path / "photos" / "rex" / "2.png").unlink()
    found = changes(plan_of(job), Registry(Store(job.storage)))
    assert found == {"rex": ("its photographs",)}


def test_a_renamed_subject_is_recognised_by_its_photographs(job, tmp_path):
    (tmp_path / "photos" / "rex").rename(tmp_path / "photos" / "king")
    plan = plan_of(job)
    assert renamed(plan, Registry(Store(job.storage))) == {"king": "rex"}
