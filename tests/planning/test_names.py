"""The identifiers of subjects, and problems with those chosen by users."""

from __future__ import annotations

import dataclasses
import weakref

import pytest
from kit.records import record
from kit.worlds import load_job

from dbray import bases
from dbray.errors import SpecError
from dbray.planning import identifiers
from dbray.planning.checks import check_job
from dbray.planning.names import Latest, Naming, check_names, name_subjects, read_latest
from dbray.planning.plan import make_plan
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


def name(job, base, subjects, registry):
    """Name subjects as a plan does."""
    naming, problems = check_names(job, base, subjects)
    if naming is None:
        raise SpecError(problems)
    return name_subjects(job, base, naming, read_latest(registry))


def problems_of(base, *subjects):
    return check_names(JOB, base, subjects)[1]


def shared(problems):
    return [(one.subject, one.what) for one in problems if "is also that of" in one.what]


def test_shared_identifiers_are_reported_without_a_registry(base):
    found = shared(problems_of(base, subject("rex", "zb zd"), subject("tom", "ZB  zd")))
    assert found == [("tom", "its identifier 'ZB  zd' is also that of subject rex")]
    assert not shared(problems_of(base, subject("rex", "zb"), subject("tom", "zd")))


def test_an_identifier_of_a_published_model_is_reported_in_any_case(base, registry):
    registry.publish(record("fido", identifier="zb"), {"unet.safetensors": b"weights"})
    names, warnings = name(JOB, base, [subject("rex", "ZB")], registry)
    assert names == {"rex": "ZB"}
    assert shared(warnings) == [("rex", "its identifier 'ZB' is also that of a published model")]


def test_an_identifier_of_spaces_is_rejected(base, registry):
    subjects = [subject("rex", "  "), subject("tom", "zb")]
    [problem] = problems_of(base, *subjects)
    assert (problem.severity, problem.subject) == ("error", "rex")
    with pytest.raises(SpecError, match="consists of spaces"):
        name(JOB, base, subjects, registry)


def test_an_unreadable_tokenizer_is_a_problem(base, tmp_path):
    elsewhere = dataclasses.replace(base, folder=tmp_path)
    [problem] = problems_of(elsewhere, subject("rex"))
    assert (problem.severity, problem.where) == ("error", "base")


def test_records_of_published_models_are_not_held_in_memory(base, registry, monkeypatch):
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
    name(JOB, base, [subject("rex")], registry)
    assert len(seen) == 9
    assert most_alive <= 3


def test_remaining_subjects_of_a_continued_job_keep_their_identifiers(base, registry):
    vocabulary = bases.load_tokenizer(base)
    rare = identifiers.candidates(vocabulary, None, ())
    ids = sorted(vocabulary.encode(token, add_special_tokens=False)[0] for token in rare)
    few = Identifiers(rank_range=(ids[0], ids[4]))  # four candidates
    job = JOB.model_copy(update={"identifiers": few})
    subjects = [subject(f"s{number}") for number in range(6)]
    names, _ = name(job, base, subjects, registry)
    assert {len(name.split()) for name in names.values()} == {2}
    for number in (0, 2, 5):  # one token would suffice for the remaining three
        drawn = names[f"s{number}"]
        published = record(f"s{number}", number, identifier=drawn, base_digest=base.digest)
        registry.publish(published, {"unet.safetensors": b"weights"})
    assert name(job, base, subjects, registry)[0] == names


def test_an_identifier_of_an_earlier_version_stays_published(base):
    naming = Naming(["rex", "tom"], {}, ["zb", "zd", "zf"], [], was_candidate={"qm"}.__contains__)
    published = {
        "rex": Latest("0" * 12, None, "qm", base.digest),
        "tom": Latest("0" * 12, None, "special", base.digest),
    }
    names, _ = name_subjects(JOB, base, naming, published)
    assert names["rex"] == "qm"
    assert names["tom"] in naming.rare


def test_strong_words_are_drawn_for_nobody_and_stay_where_published(base):
    naming = Naming(["rex", "tom"], {}, ["zb", "zd", "zf"], [])
    published = {"rex": Latest("0" * 12, None, "zb", base.digest)}
    job = JOB.model_copy(update={"identifiers": Identifiers(num_tokens=1)})
    for strong, other in (["zb", "zd"], "zf"), (["zb", "zf"], "zd"):
        names, _ = name_subjects(job, base, naming, published, strong)
        assert names == {"rex": "zb", "tom": other}
    with pytest.raises(SpecError, match="only 1 are free"):
        name_subjects(job, base, naming, {}, ["zb", "zd"])


def test_the_vocabulary_is_searched_once_for_checks_and_plan(tiny_base, tmp_path, monkeypatch):
    calls, search = [], identifiers.candidates
    monkeypatch.setattr(
        identifiers, "candidates", lambda *args: calls.append(args) or search(*args)
    )
    job = load_job(tmp_path, tiny_base, {"rex": "dog"})
    make_plan(check_job(job).ready(), Store(job.storage))
    assert len(calls) == 1
