"""The results of an ablation: estimates by variant, as JSON, CSV and rows of a table.

Owns their format, and which figures stand beside the variants: those of the untouched base, of
photographs compared with each other, and the paper's.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dbray.ablate.intervals import Estimate, Values, difference, estimate
from dbray.ablate.scoring import Scored
from dbray.ablate.variants import Ablation, Variant
from dbray.scores.values import Scores

HEADINGS = {
    "identity": "identity",
    "clip_identity": "CLIP-I",
    "nearest": "right one nearest",
    "prompt": "prompt (CLIP-T)",
    "preservation": "PRES",
    "diversity": "DIV",
    "drift": "drift",
    "copies": "copies",
}
BASE, PHOTOGRAPHS = "untouched base", "photographs"
# The fields of Scores with the figures of the base, and of photographs.
_OF_BASE = {name: f"base_{name}" for name in HEADINGS if f"base_{name}" in Scores.model_fields}
_OF_PHOTOGRAPHS = {
    "identity": "ceiling", "clip_identity": "clip_ceiling", "nearest": "ceiling_nearest",
}  # fmt: skip
# The paper's Table 1: real images compared with each other.
_PAPER_PHOTOGRAPHS = {"identity": 0.774, "clip_identity": 0.885}


@dataclass(frozen=True)
class Line:
    """One variant, or what stands beside the variants."""

    name: str
    estimates: Mapping[str, Estimate]
    """By measure; only those that were measured."""
    against_first: Mapping[str, Estimate]
    """Paired differences from the first variant."""
    paper: Mapping[str, float]


@dataclass(frozen=True)
class Results:
    """What an ablation found."""

    name: str
    ablation: Ablation
    variants: Sequence[Variant]
    scored: Sequence[Scored]

    @property
    def measures(self) -> list[str]:
        """The ablation's measures that were taken."""
        taken = {name for name in self.ablation.measures for one in self.scored
                 if _value(one, name) is not None}  # fmt: skip
        return [name for name in self.ablation.measures if name in taken]

    def lines(self) -> list[Line]:
        """Return the variants in order, then the base and the photographs."""
        first, *_ = self.variants
        trained = [one for one in self.scored if one.variant == first.name]
        found = [self._line(variant) for variant in self.variants]
        found.append(self._beside(BASE, trained, _OF_BASE, {}))
        found.append(self._beside(PHOTOGRAPHS, trained, _OF_PHOTOGRAPHS, _PAPER_PHOTOGRAPHS))
        return found

    def _line(self, variant: Variant) -> Line:
        first, *_ = self.variants
        estimates, differences = {}, {}
        for name in self.measures:
            values = self._values(variant.name, name)
            if found := estimate(values):
                estimates[name] = found
            against = difference(values, self._values(first.name, name))
            if against and variant is not first:
                differences[name] = against
        return Line(variant.name, estimates, differences, variant.paper)

    def _beside(
        self,
        name: str,
        scored: Sequence[Scored],
        fields: Mapping[str, str],
        paper: Mapping[str, float],
    ) -> Line:
        found = {
            measure: estimate(_by_subject(scored, fields[measure]))
            for measure in self.measures
            if measure in fields
        }
        estimates = {measure: one for measure, one in found.items() if one is not None}
        published = {measure: value for measure, value in paper.items() if measure in estimates}
        return Line(name, estimates, {}, published)

    def _values(self, variant: str, measure: str) -> Values:
        return _by_subject([one for one in self.scored if one.variant == variant], measure)

    def json(self) -> dict[str, Any]:
        """Return the results as JSON."""
        return {
            "ablation": self.name,
            "summary": self.ablation.summary,
            "paper": self.ablation.source,
            "measures": self.measures,
            "variants": [_as_json(line) for line in self.lines()],
        }

    def csv(self) -> str:
        """Return a row for each variant, subject and seed, with every score."""
        out = io.StringIO()
        fields = list(self.scored[0].scores.model_dump()) if self.scored else []
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["variant", "subject", "seed", "model", *fields])
        for one in self.scored:
            values = one.scores.model_dump()
            known = [values[name] for name in fields]
            writer.writerow([one.variant, one.subject, one.seed, one.model, *known])
        return out.getvalue()

    def headings(self) -> list[str]:
        """Return the headings of the table: a measure's is followed by the paper's figures."""
        return ["", *(heading for name in self.measures for heading in self._columns(name))]

    def rows(self) -> Iterator[list[str]]:
        """Yield the rows of the table."""
        for line in self.lines():
            cells = [line.name]
            for name in self.measures:
                cells.append(_cell(line, name))
                if self._has_paper(name):
                    cells.append(f"{line.paper[name]:.3f}" if name in line.paper else "")
            yield cells

    def _columns(self, measure: str) -> list[str]:
        return [HEADINGS[measure], *(["paper"] if self._has_paper(measure) else [])]

    def _has_paper(self, measure: str) -> bool:
        return any(measure in variant.paper for variant in self.variants)


def _by_subject(scored: Sequence[Scored], field: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for one in scored:
        value = _value(one, field)
        if value is not None:
            found.setdefault(one.subject, []).append(value)
    return found


def _value(one: Scored, field: str) -> float | None:
    return getattr(one.scores, field)


def _cell(line: Line, measure: str) -> str:
    if measure not in line.estimates:
        return ""
    found = line.estimates[measure]
    half = "" if found.half_width is None else f" ± {found.half_width:.3f}"
    against = line.against_first.get(measure)
    difference = f" ({against.mean:+.3f}{'*' * against.excludes_zero})" if against else ""
    return f"{found.mean:.3f}{half}{difference}"


def _as_json(line: Line) -> dict[str, Any]:
    return {
        "name": line.name,
        "estimates": {name: asdict(one) for name, one in line.estimates.items()},
        "against_first": {name: asdict(one) for name, one in line.against_first.items()},
        "paper": dict(line.paper),
    }
