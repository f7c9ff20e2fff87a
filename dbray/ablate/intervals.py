"""Means over subjects and seeds, with 95 % intervals.

The seeds of one subject are not independent of each other, so each subject counts once, with the
mean of its seeds; the interval is Student's over subjects. Differences are paired by subject. Knows
neither models nor files. Source of the quantiles: Abramowitz and Stegun, 26.7.5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

# Where the expansion is not good to 0.001.
_SMALL = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706}

Values = Mapping[str, Sequence[float]]
"""By subject, a figure for each seed; never empty."""


@dataclass(frozen=True)
class Estimate:
    """A mean over subjects; `half_width` is that of its 95 % interval, None for one subject."""

    mean: float
    half_width: float | None
    num_subjects: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.half_width is not None and abs(self.mean) > self.half_width


def estimate(values: Values) -> Estimate | None:
    """Estimate the mean; None without values."""
    return _of([fmean(seeds) for seeds in values.values()])


def difference(values: Values, reference: Values) -> Estimate | None:
    """Estimate the mean of `values` - `reference`, over the subjects of both."""
    both = [name for name in values if name in reference]
    return _of([fmean(values[name]) - fmean(reference[name]) for name in both])


def student(degrees: int) -> float:
    """The 97.5 % quantile of Student's distribution, to 0.002."""
    if degrees in _SMALL:
        return _SMALL[degrees]
    z = NormalDist().inv_cdf(0.975)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3


def _of(means: Sequence[float]) -> Estimate | None:
    if not means:
        return None
    count = len(means)
    if count == 1:
        return Estimate(means[0], None, 1)
    return Estimate(fmean(means), student(count - 1) * stdev(means) / math.sqrt(count), count)
