"""Which identifier a subject goes by, and what is said against those that users chose."""

from __future__ import annotations

import dataclasses
import weakref

import pytest
from kit.records import record

from dbray import bases
from dbray.errors import SpecError
from dbray.planning import identifiers
from dbray.planning.names import check_names, name_subjects
from dbray.records.models import Registry
from dbray.spec.job import Job
from dbray.spec.sections import Identifiers
from dbray.spec.subject import Subject
from dbray.storage.store import Store


@pytest.fixture(scope="module")
def base(tiny_base):
    return bases.resolve(str(tiny_base))


@pytest.fixture
def registry(tmp_path):
    return Registry(Store(str(tmp_path / "runs")))


JOB = Job(base="tiny", subjects=())


def subject(subject_id, identifier=None):
    return Subject.model_construct(
        id=subject_id, class_noun="dog", images=("a.png",), identifier=identifier, captions=None
    )


def shared(problems):
    return [(one.subject, one.what) for one in problems if "is that of" in one.what]


def test_subjects_that_share_a_name_are_told_before_any_registry_is_asked(base):
    told = shared(check_names(JOB, base, [subject("rex", "zb zd"), subject("tom", "ZB  zd")]))
    assert told == [("tom", "its identifier 'ZB  zd' is that of subject rex too")]
    assert not shared(check_names(JOB, base, [subject("rex", "zb"), subject("tom", "zd")]))


def test_a_name_that_a_published_model_has_is_told_whatever_its_case(base, registry):
    registry.publish(record("fido", identifier="zb"), {"unet.safetensors": b"weights"})
    names, warnings = name_subjects(JOB, base, [subject("rex", "ZB")], registry)
    assert names == {"rex": "ZB"}
    assert shared(warnings) == [("rex", "its identifier 'ZB' is that of a published model too")]


def test_an_identifier_of_spaces_is_refused(base, registry):
    subjects = [subject("rex", "  "), subject("tom", "zb")]
    [problem] = check_names(JOB, base, subjects)
    assert (problem.severity, problem.subject) == ("error", "rex")
    with pytest.raises(SpecError, match="of spaces"):
        name_subjects(JOB, base, subjects, registry)


def test_a_tokenizer_that_cannot_be_read_is_a_problem(base, tmp_path):
    elsewhere = dataclasses.replace(base, folder=tmp_path)
    [problem] = check_names(JOB, elsewhere, [subject("rex")])
    assert (problem.severity, problem.where) == ("error", "base")


def test_records_of_published_models_are_not_kept(base, registry, monkeypatch):
    for index in range(9):
        registry.publish(record(f"m{index}", index), {"unet.safetensors": b"weights"})
    seen, most_alive, listed = [], 0, registry.list

    def watched():
        nonlocal most_alive
        for one in listed():
            seen.append(weakref.ref(one))
            most_alive = max(most_alive, sum(ref() is not None for ref in seen))
            yield one

    monkeypatch.setattr(registry, "list", watched)
    name_subjects(JOB, base, [subject("rex")], registry)
    assert len(seen) == 9
    assert most_alive <= 3


def test_the_subjects_left_of_a_job_that_is_continued_keep_their_names(base, registry):
    vocabulary = bases.load_tokenizer(base)
    rare = identifiers.candidates(vocabulary, None, ())
    ids = sorted(vocabulary.encode(token, add_special_tokens=False)[0] for token in rare)
    few = Identifiers(rank_range=(ids[0], ids[4]))  # four candidates
    job = JOB.model_copy(update={"identifiers": few})
    subjects = [subject(f"s{number}") for number in range(6)]
    names, _ = name_subjects(job, base, subjects, registry)
    assert {len(name.split()) for name in names.values()} == {2}
    for number in (0, 2, 5):  # for the three that are left, one token would do
        name = names[f"s{number}"]
        published = record(f"s{number}", number, identifier=name, base_digest=base.digest)
        registry.publish(published, {"unet.safetensors": b"weights"})
    assert name_subjects(job, base, subjects, registry)[0] == names
