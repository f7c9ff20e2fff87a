"""The headline of a report: notices, and a row of figures with what they count.

Owns how counts, rates and times are written for people. Does not know HTML.
"""

from __future__ import annotations

from typing import NamedTuple

from dbray.records.results import Summary
from dbray.report.contents import MAX_DETAILED, Contents

_STATES = {
    "finished": "",
    "running": "The job is still running. This page shows what was done when it was written.",
    "broken": "The job ended with an error. Running it again continues where it stopped.",
    "stopped": "The job was stopped before its end, because too many subjects failed.",
    "interrupted": "The job was interrupted. Running it again continues where it stopped.",
}


def notices_of(contents: Contents) -> list[str]:
    """What a reader must know first: how the job ended, its error, what is only listed."""
    summary = contents.summary
    notices = [_STATES.get(summary.state, summary.state), summary.error]
    num_listed = sum(not card.is_detailed for card in contents.cards)
    if num_listed:
        notices.append(
            f"The first {MAX_DETAILED:,} failed subjects and the first {MAX_DETAILED:,} others "
            f"have images and details here. The other {num_listed:,} are listed with their "
            "results; 'dbray models show' shows more of each."
        )
    return [notice for notice in notices if notice]


class Figure(NamedTuple):
    """One figure of the headline. `kind` is a class in page.css."""

    name: str
    value: str
    note: str = ""
    kind: str = ""


def figures_of(contents: Contents) -> list[Figure]:
    """The row of figures; unknown ones are left out."""
    counts, total = contents.summary.counts, len(contents.cards)
    failed = counts.get("failed", 0)
    figures = [
        Figure("Published", f"{counts.get('published', 0):,}",
                f"of {_plural(total, 'subject')}", "good"),
        Figure("Kept", f"{counts.get('kept', 0):,}", "published before"),
        Figure("Failed", f"{failed:,}", _causes(contents.summary), "bad" if failed else ""),
        Figure("Unfinished", f"{counts.get('unfinished', 0):,}", "run it again"),
    ]  # fmt: skip
    shown = [one for one in figures if one.value != "0" or one.name in ("Published", "Failed")]
    return shown + _rates(contents.summary)


def _rates(summary: Summary) -> list[Figure]:
    """How long it took and how much was made, as far as known."""
    figures = []
    if summary.wall_seconds is not None:
        lanes = _plural(summary.lanes, "lane") if summary.lanes else ""
        figures.append(Figure("Wall time", duration(summary.wall_seconds), lanes))
    if summary.subjects_per_hour is not None:
        steps = _plural(summary.train_steps, "step") if summary.train_steps else ""
        figures.append(Figure("Subjects per hour", _number(summary.subjects_per_hour), steps))
    if summary.prior_images is not None:
        rate = summary.prior_images_per_second
        note = f"{_number(rate)} per second" if rate else ""
        figures.append(Figure("Class images", f"{summary.prior_images:,}", note))
    if summary.prior_sets is not None:
        figures.append(Figure("Prior sets", f"{summary.prior_sets:,}", "each of one class noun"))
    return figures


def _causes(summary: Summary) -> str:
    return _plural(len(summary.failures), "cause") if summary.failures else ""


def duration(seconds: float) -> str:
    """Write a time for people: 0.42 s, 41 s, 12 min 5 s, 3 h 20 min."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _plural(count: int | None, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
