"""New identifiers are measured before a run, and strong ones are replaced."""

from __future__ import annotations

import pytest
from kit.worlds import load_job

from dbray import bases
from dbray.planning.checks import check_job
from dbray.planning.identifiers import rare
from dbray.planning.plan import make_plan
from dbray.records.models import Registry
from dbray.records.strengths import Strengths, read_strengths, write_strengths
from dbray.run.job import run_job
from dbray.run.measuring import measure_identifiers
from dbray.sampling.strengths import measure_strengths
from dbray.storage.store import Store

SUBJECTS = {"rex": "dog", "tom": "cat"}
BARE = {"recipe": {"steps": 2, "prior_weight": 0.0}, "previews": {"prompts": []}}


@pytest.fixture
def job(tmp_path, tiny_base, monkeypatch):
    """A job on a base whose vocabulary counts as large."""
    monkeypatch.setattr(rare, "LARGE_VOCABULARY", 100)
    return load_job(tmp_path, tiny_base, SUBJECTS, **BARE)


def plan_of(job):
    return make_plan(check_job(job).ready(), Store(job.storage))


def test_a_strong_identifier_is_replaced_and_the_others_stay(job):
    first, store = plan_of(job), Store(job.storage)
    rex, tom = (planned.identifier for planned in first.subjects)
    assert first.unmeasured == (rex, tom)
    known = Strengths(rare_effect=0.1, noun_effect=0.5, words={rex: 0.9, tom: 0.1})
    write_strengths(store, first.base.digest, known)
    second = plan_of(job)
    assert second.subjects[0].identifier not in (rex, tom)
    assert second.unmeasured == (second.subjects[0].identifier,)
    assert (second.subjects[1].identifier, second.subjects[1].strength) == (tom, 0.1)


def test_identifiers_of_users_and_of_small_vocabularies_are_not_measured(tmp_path, tiny_base, job):
    ready = check_job(job).ready()
    given = [one.subject.model_copy(update={"identifier": "zb"}) for one in ready.subjects]
    assert plan_of(job.model_copy(update={"subjects": tuple(given)})).unmeasured == ()


@pytest.mark.ray
def test_what_is_known_is_not_measured_again(job, ray_session):
    plan, store = plan_of(job), Store(job.storage)
    tokens = check_job(job).ready().naming.rare
    measure_identifiers(plan, tokens, store)
    known = read_strengths(store, plan.base.digest)
    assert set(plan.unmeasured) <= set(known.words)
    assert plan_of(job).unmeasured == ()
    scale = known.model_copy(update={"rare_effect": 1.0, "noun_effect": 2.0})
    base = bases.resolve(plan.base.name)
    more = measure_strengths(base, [tokens[1], *plan.unmeasured], tokens, scale)
    assert (more.rare_effect, more.noun_effect) == (1.0, 2.0)
    assert known.words.items() <= more.words.items()


@pytest.mark.slow
@pytest.mark.ray
def test_the_figure_is_published_with_the_model(job, ray_session):
    assert run_job(job).exit_code == 0
    store = Store(job.storage)
    for record in Registry(store).list():
        known = read_strengths(store, record.base_digest)
        assert record.metadata == {"identifier_strength": f"{known.words[record.identifier]:.2f}"}
    assert run_job(job).summary.counts["kept"] == 2
