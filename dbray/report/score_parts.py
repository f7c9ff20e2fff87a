"""What pages show of the scores of many models: means, distributions, and the worst ten.

Owns how scores are summarised for people. Does not know HTML: see scores.html.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dbray.scores.flags import Flag, flags_of
from dbray.scores.values import COLUMNS, Column, Scores, references, shown, value_of

NUM_WORST = 10
NUM_BINS = 24
_BAR_HEIGHT = 56


class ScoredModel(NamedTuple):
    """A model and its scores."""

    id: str
    scores: Scores

    @property
    def flags(self) -> tuple[Flag, ...]:
        """Its faults."""
        return flags_of(self.scores)

    @property
    def cells(self) -> list[tuple[str, str]]:
        """Of each column, the figure and what it is compared with."""
        return [
            (shown(value_of(self.scores, name)), references(self.scores, column))
            for name, column in COLUMNS.items()
        ]


class Bar(NamedTuple):
    """A bar of a histogram."""

    place: int
    height: float
    text: str


class Distribution(NamedTuple):
    """A histogram of one score over all models, and the base's mean."""

    column: Column
    bars: list[Bar]
    base_bars: list[Bar]
    low: str
    high: str
    mean: str
    references: str


@dataclass(frozen=True)
class ScoreParts:
    """The scores of a page."""

    count: int
    num_flagged: int
    faults: list[tuple[str, int]]
    """Words and number of models, the most frequent first."""
    distributions: list[Distribution]
    worst: list[ScoredModel]


def score_parts(models: Sequence[ScoredModel]) -> ScoreParts | None:
    """Summarise scores; None if there are none."""
    if not models:
        return None
    counted: dict[str, int] = {}
    for model in models:
        for flag in model.flags:
            counted[flag.words] = counted.get(flag.words, 0) + 1
    found = (_distribution(column, models) for column in COLUMNS.values())
    return ScoreParts(
        len(models),
        sum(bool(model.flags) for model in models),
        sorted(counted.items(), key=lambda one: -one[1]),
        [one for one in found if one is not None],
        worst(models),
    )


def worst(models: Sequence[ScoredModel]) -> list[ScoredModel]:
    """Return the ten worst models: those with most faults, then the least like their subjects."""
    ordered = sorted(models, key=lambda one: (-len(one.flags), _resemblance(one.scores)))
    return ordered[:NUM_WORST]


def _resemblance(scores: Scores) -> float:
    return scores.identity - scores.ceiling


def _distribution(column: Column, models: Sequence[ScoredModel]) -> Distribution | None:
    own = _values(models, column.field)
    if not own:
        return None
    of_base = _values(models, column.base)
    low, high = min((*own, *of_base)), max((*own, *of_base))
    mean_of = {"base": of_base, "ceiling": _values(models, column.ceiling)}
    notes = [f"{name} {statistics.fmean(found):.3f}" for name, found in mean_of.items() if found]
    return Distribution(
        column,
        _bars(own, low, high),
        _bars(of_base, low, high),
        shown(low),
        shown(high),
        shown(statistics.fmean(own)),
        ", ".join(notes),
    )


def _values(models: Sequence[ScoredModel], field: str | None) -> list[float]:
    values = (getattr(model.scores, field) for model in models) if field else ()
    return [value for value in values if value is not None]


def _bars(values: Sequence[float], low: float, high: float) -> list[Bar]:
    """Count values in bins of equal width; empty bins have no bar."""
    width = (high - low) / NUM_BINS or 1.0
    counts = [0] * NUM_BINS
    for value in values:
        counts[min(NUM_BINS - 1, int((value - low) / width))] += 1
    most = max(counts, default=0)
    return [
        Bar(place, round(_BAR_HEIGHT * count / most, 1),
            f"{low + place * width:.3f} to {low + (place + 1) * width:.3f}: {count}")
        for place, count in enumerate(counts) if count
    ]  # fmt: skip
