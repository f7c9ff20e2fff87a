"""When training stops, and which checkpoint is published: a rule over the fidelity curve.

Pure functions. Does not know how fidelity is measured.

The rule: of two points, one within `max_drift` is better than one beyond it; within it, the later
one is better if its identity is higher by more than `tolerance`; beyond it, the one that drifted
less. The best point is published. Training ends when `patience` points have not been better, if the
best one's identity is at least the share `learnt` of the ceiling: without that, a subject whose
renders vary would end before it is learnt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dbray.spec.stop import Stop


@dataclass(frozen=True)
class FidelityPoint:
    """How faithful the weights after a step are; `step` counts from 1.

    `identity` is the mean cosine of renders and photographs, `drift` 1 - the mean cosine of renders
    of class prompts and the base's. `seconds` are those since training began, measuring included.
    """

    step: int
    identity: float
    drift: float
    seconds: float


def best_of(curve: Sequence[FidelityPoint], stop: Stop) -> int:
    """Return the index of the point to publish, of a curve with points."""
    best = 0
    for index in range(1, len(curve)):
        if _is_better(curve[index], curve[best], stop):
            best = index
    return best


def is_over(curve: Sequence[FidelityPoint], stop: Stop, ceiling: float) -> bool:
    """Return whether training ends after the last point of the curve.

    `ceiling` is the mean cosine of the subject's photographs to each other.
    """
    best = best_of(curve, stop)
    is_learnt = curve[best].identity >= stop.learnt * ceiling
    return is_learnt and len(curve) - 1 - best >= stop.patience


def _is_better(point: FidelityPoint, best: FidelityPoint, stop: Stop) -> bool:
    is_within, was_within = point.drift <= stop.max_drift, best.drift <= stop.max_drift
    if is_within and was_within:
        return point.identity > best.identity + stop.tolerance
    return is_within or (not was_within and point.drift < best.drift)
