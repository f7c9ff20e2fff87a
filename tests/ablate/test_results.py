"""Tables, JSON and CSV of an ablation, from scores."""

from __future__ import annotations

import csv
import io

import pytest

from dbray.ablate.results import Results
from dbray.ablate.scoring import Scored
from dbray.ablate.variants import ABLATIONS, Variant
from dbray.records.scores import Scores


def scores(identity, **fields):
    usual = dict.fromkeys(Scores.model_fields, 0.5) | {"num_lookalikes": 0, "prompt": None}
    return Scores.model_validate(usual | {"identity": identity, **fields})


@pytest.fixture
def results():
    variants = [Variant("correct", None, {"identity": 0.744}), Variant("none", None)]
    scored = [
        Scored(variant.name, subject, seed, f"{subject}@{seed}", scores(level + shift))
        for variant, level in zip(variants, (0.6, 0.2), strict=True)
        for subject, shift in (("rex", 0.0), ("tom", 0.1))
        for seed in (0, 1)
    ]
    return Results("noun", ABLATIONS["noun"], variants, scored)


def test_lines_are_the_variants_the_base_and_the_photographs(results):
    correct, none, base, photographs = results.lines()
    assert correct.estimates["identity"].mean == pytest.approx(0.65)
    assert correct.against_first == {}
    assert none.against_first["identity"].mean == pytest.approx(-0.4)
    assert none.against_first["identity"].half_width == pytest.approx(0.0, abs=1e-9)
    assert base.estimates["identity"].mean == 0.5
    assert photographs.paper["identity"] == 0.774


def test_scores_that_were_not_measured_are_left_out(results):
    assert "prompt" not in results.measures
    assert "prompt (CLIP-T)" not in results.headings()


def test_the_papers_figures_are_beside_ours(results):
    place = results.headings().index("paper")
    assert results.headings()[place - 1] == "identity"
    assert [row[place] for row in results.rows()] == ["0.744", "", "", "0.774"]
    assert all(len(row) == len(results.headings()) for row in results.rows())


def test_a_difference_whose_interval_leaves_out_0_is_marked(results):
    correct, none, *_ = results.rows()
    assert correct[1] == "0.650 ± 0.635"
    assert none[1] == "0.250 ± 0.635 (-0.400*)"


def test_csv_has_a_row_for_each_model(results):
    rows = list(csv.DictReader(io.StringIO(results.csv())))
    assert len(rows) == 8
    assert rows[0]["model"] == "rex@0"
    assert float(rows[0]["identity"]) == 0.6
