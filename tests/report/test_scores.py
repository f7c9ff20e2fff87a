"""Scores in reports: means, distributions, the worst ten, faults; without scores nothing."""

from __future__ import annotations

import json
import re

import pytest
from kit.records import record
from kit.scores import GOOD, scores

from dbray.records.results import Outcome, Summary
from dbray.report.contents import Card, Contents, JobFile
from dbray.report.page import render
from dbray.report.score_parts import NUM_BINS, ScoredModel, score_parts
from dbray.report.thumbnails import Thumbnails
from dbray.spec.job import Job


def card(name, found):
    one = record(name)
    result = Outcome(id=name, class_noun="dog", status="published", identifier="zx",
                     revision=one.revision, attempts=1, seconds=1.0)  # fmt: skip
    return Card(name, "dog", result, one, scores=found)


def page(*cards):
    job = Job(id="pets", base="miniature", subjects=(), storage="runs")
    file = JobFile.model_validate({
        "job": job.model_dump(mode="json", by_alias=True), "base": {"name": "miniature"},
    })  # fmt: skip
    return render(Contents("pets", file, Summary(), cards, Thumbnails(1)))


def block(text, name):
    return json.loads(re.search(rf'id="{name}">(.*?)</script>', text, re.DOTALL)[1])


def test_the_worst_come_first_by_faults_then_by_likeness():
    models = [ScoredModel(f"m{n}", scores(identity=0.6 + n / 100)) for n in range(12)]
    models += [ScoredModel("bad", scores(identity=0.79, copies=1.0, followed=0.1))]
    parts = score_parts(models)
    assert [one.id for one in parts.worst] == ["bad", *(f"m{n}" for n in range(9))]
    assert (parts.count, parts.num_flagged) == (13, 1)
    assert dict(parts.faults) == {"copies its photographs": 1, "ignores prompts": 1}


def test_a_distribution_counts_every_model_once():
    models = [ScoredModel(str(n), scores(identity=n / 10)) for n in range(11)]
    [identity] = [one for one in score_parts(models).distributions
                  if one.column.field == "identity"]  # fmt: skip
    counts = [int(bar.text.rpartition(": ")[2]) for bar in identity.bars]
    assert sum(counts) == 11
    assert max(bar.place for bar in identity.bars) == NUM_BINS - 1
    assert (identity.low, identity.high, identity.mean) == ("0.000", "1.000", "0.500")
    assert identity.references == "base 0.300, ceiling 0.800"


def test_scores_that_are_all_equal_have_one_bar():
    parts = score_parts([ScoredModel("a", GOOD), ScoredModel("b", GOOD)])
    [drift] = [one for one in parts.distributions if one.column.field == "drift"]
    assert len(drift.bars) == 1


def test_what_was_not_measured_has_no_distribution():
    parts = score_parts([ScoredModel("a", scores(prompt=None, base_prompt=None))])
    assert "prompt" not in [one.column.field for one in parts.distributions]


def test_a_page_shows_scores_and_faults_of_each_model():
    text = page(card("good", GOOD), card("bad", scores(identity=0.31)), card("new", None))
    assert "1 of 2 scored models has a fault: does not resemble its subject (1)." in text
    assert '<a href="#subject-bad">bad</a>' in text
    index = block(text, "index")
    assert [one["scores"] and one["scores"]["identity"] for one in index["subjects"]] == [
        0.7, 0.31, None,
    ]  # fmt: skip
    assert block(text, "data-0")["flags"] == []
    [[words, evidence, fix]] = block(text, "data-1")["flags"]
    assert words == "does not resemble its subject"
    assert "0.310" in evidence
    assert "recipe.steps" in fix
    assert block(text, "data-1")["scores"][0][:3] == [
        "identity", "0.310", "base 0.300, ceiling 0.800",
    ]  # fmt: skip
    assert block(text, "data-2")["scores"] == []


@pytest.mark.parametrize("part", ["scores-title", "The worst ten", 'value="score'])
def test_a_page_without_scores_has_none_of_it(part):
    assert part not in page(card("new", None))
    assert part in page(card("good", GOOD))
