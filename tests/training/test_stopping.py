"""The rule that ends training and chooses a checkpoint."""

from __future__ import annotations

import pytest

from dbray.spec.stop import Stop
from dbray.training.stopping import FidelityPoint, best_of, is_over

STOP = Stop(patience=2, tolerance=0.01, max_drift=0.5)


def curve_of(*points: float | tuple[float, float]) -> list[FidelityPoint]:
    """Make a curve of identities, or of pairs of identity and drift."""
    pairs = [point if isinstance(point, tuple) else (point, 0.1) for point in points]
    return [FidelityPoint(50 * (i + 1), *pair, float(i)) for i, pair in enumerate(pairs)]


@pytest.mark.parametrize(("points", "best"), [
    pytest.param([0.5], 0, id="one point"),
    pytest.param([0.5, 0.6, 0.7], 2, id="rising"),
    pytest.param([0.5, 0.7, 0.6], 1, id="the highest"),
    pytest.param([0.5, 0.7, 0.705, 0.709], 1, id="the first of a plateau"),
    pytest.param([0.5, 0.508, 0.516], 2, id="a slow rise adds up"),
    pytest.param([0.5, (0.9, 0.6)], 0, id="not beyond the bound"),
    pytest.param([(0.9, 0.6), 0.5], 1, id="back within the bound"),
    pytest.param([(0.5, 0.8), (0.9, 0.7), (0.9, 0.9)], 1, id="all beyond: the least drift"),
    pytest.param([(0.5, 0.5), (0.6, 0.5)], 1, id="the bound itself is within"),
])  # fmt: skip
def test_the_best_point(points, best):
    assert best_of(curve_of(*points), STOP) == best


@pytest.mark.parametrize(("points", "over"), [
    ([0.5], False),
    ([0.5, 0.5], False),
    ([0.5, 0.5, 0.5], True),
    ([0.5, 0.5, 0.52], False),
    ([0.5, (0.6, 0.9), (0.7, 0.9)], True),
])  # fmt: skip
def test_training_is_over_when_patience_is(points, over):
    assert is_over(curve_of(*points), STOP, ceiling=0.6) is over


def test_training_is_not_over_before_the_subject_is_learnt():
    curve = curve_of(0.2, 0.4, 0.3, 0.35)
    assert not is_over(curve, STOP, ceiling=0.6)
    assert is_over(curve, STOP, ceiling=0.5)


def test_a_point_that_was_best_before_training_went_on_is_still_judged_alike():
    """A resumed run has the same curve, and comes to the same choice at every point."""
    curve = curve_of(0.4, 0.5, (0.7, 0.9), 0.505, 0.6, 0.61)
    assert [best_of(curve[: n + 1], STOP) for n in range(len(curve))] == [0, 1, 1, 1, 4, 4]
