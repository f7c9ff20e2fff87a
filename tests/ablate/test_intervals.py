"""Means over subjects and seeds, and their intervals."""

from __future__ import annotations

import pytest

from dbray.ablate.intervals import difference, estimate, student


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.706), (2, 4.303), (5, 2.571), (6, 2.447), (11, 2.201), (29, 2.045), (1000, 1.962)],
)
def test_quantiles_are_those_of_tables(degrees, quantile):
    assert student(degrees) == pytest.approx(quantile, abs=2e-3)


def test_the_interval_is_students_over_subjects():
    found = estimate({"a": [1.0], "b": [2.0], "c": [3.0]})
    assert found is not None
    assert found.mean == 2.0
    assert found.half_width == pytest.approx(4.3027 / 3**0.5, abs=1e-3)


def test_more_seeds_of_a_subject_do_not_narrow_the_interval():
    few = estimate({"a": [1.0], "b": [2.0]})
    many = estimate({"a": [1.0] * 9, "b": [2.0] * 9})
    assert few == many


def test_differences_are_paired_by_subject():
    high = {"a": [11.0, 11.0], "b": [21.0], "c": [99.0]}
    found = difference(high, {"a": [10.0], "b": [20.0, 20.0]})
    assert found is not None
    assert (found.mean, found.half_width, found.num_subjects) == (1.0, 0.0, 2)


def test_one_subject_has_no_interval_and_none_has_no_mean():
    found = estimate({"a": [1.0, 2.0]})
    assert found is not None
    assert (found.mean, found.half_width) == (1.5, None)
    assert estimate({}) is None
