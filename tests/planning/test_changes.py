"""Why a published subject would be trained again."""

from __future__ import annotations

import unicodedata
from dataclasses import replace

import pytest
from kit import records
from kit.profiles import DISPLAY_P3, rgb_profile
from kit.worlds import load_job
from PIL import Image

from dbray.planning.changes import changes, in_another_form, renamed
from dbray.planning.checks import check_job
from dbray.planning.plan import make_plan
from dbray.records.models import Registry
from dbray.spec.canon import digest_json
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


def test_a_folder_in_another_unicode_form_is_reported(tmp_path, tiny_base):
    composed, decomposed = (unicodedata.normalize(form, "Zo\u00eb") for form in ("NFC", "NFD"))
    job = load_job(tmp_path, tiny_base, {composed: "dog"})
    plan, registry = plan_of(job), Registry(Store(job.storage))
    records.publish(job.storage, records.record_of(plan, plan.to_train[0]))
    assert list(in_another_form(plan_of(job), registry)) == []
    (tmp_path / "photos" / composed).rename(tmp_path / "photos" / decomposed)
    [warning] = in_another_form(plan_of(job), registry)
    assert (warning.subject, "published model zo;" in warning.what) == ("zoe", True)
    assert "rename the folder to the NFC form" in warning.fix
    (tmp_path / "photos" / decomposed).rename(tmp_path / "photos" / composed)  # the fix
    assert plan_of(job).to_train == ()


def test_photographs_that_decode_otherwise_than_before_are_trained_again(tmp_path, tiny_base):
    job = load_job(tmp_path, tiny_base, {"rex": "dog"})
    image = tmp_path / "photos" / "rex" / "0.png"
    with Image.open(image) as picture:
        picture.save(image, icc_profile=rgb_profile(DISPLAY_P3))
    plan = plan_of(job)
    [rex] = [one for one in plan.to_train if one.subject.id == "rex"]
    [checked] = [one for one in check_job(job).subjects if one.subject.id == "rex"]
    assert checked.decodings == (2, 1, 1)
    fields = {
        "version": 1, "base": plan.base.digest, "subject": "rex", "images": rex.image_digests,
        "class_noun": "dog", "captions": None, "identifier": rex.identifier,
        "recipe": plan.job.recipe.identity(), "prior": rex.prior_digest,
    }  # fmt: skip
    assert rex.fingerprint == digest_json({**fields, "decodings": (2, 1, 1)})
    # Published by a version that did not convert colours.
    earlier = replace(rex, fingerprint=digest_json(fields))
    records.publish(job.storage, records.record_of(plan, earlier))
    found = changes(plan_of(job), Registry(Store(job.storage)))
    assert found == {"rex": ("how this version decodes its photographs or fills its prompts",)}
