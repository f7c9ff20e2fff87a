"""The page of an evaluation: means, distributions, the worst ten with their images, all models."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dbray.errors import StoreError
from dbray.records import evaluations
from dbray.records.evaluations import Evaluated
from dbray.report.headline import Figure
from dbray.report.score_parts import ScoredModel, ScoreParts, score_parts
from dbray.report.templates import asset, render
from dbray.scores.values import COLUMNS
from dbray.storage.store import Store

_SHOWN = 6
"""Images of each of the worst models: those least like the subject."""


@dataclass(frozen=True)
class Page:
    """What an evaluation was."""

    place: str
    prompts: str
    embedder: str
    clip: str | None
    num_images: int


class Picture(NamedTuple):
    """An image with its figures."""

    data: str
    prompt: str
    note: str


class WorstModel(NamedTuple):
    """One of the worst models, and its images that are least like the subject."""

    model: ScoredModel
    class_noun: str
    pictures: list[Picture]


def write_page(
    output: Store, page: Page, found: Sequence[Evaluated], failures: Sequence[tuple[str, str]]
) -> None:
    """Write the page into the folder of an evaluation. Raises StoreError."""
    models = [ScoredModel(one.id, one.scores) for one in found]
    parts = score_parts(models)
    assert parts is not None
    text = render(
        "evaluation.html",
        asset("evaluation.js"),
        page=page,
        figures=_figures(parts, found),
        failures=failures,
        scores=parts,
        columns=list(COLUMNS.values()),
        models=models,
        worst=_worst(output, parts, found),
    )
    output.write_bytes(evaluations.REPORT, text.encode("utf-8", "replace"))


def _figures(parts: ScoreParts, found: Sequence[Evaluated]) -> list[Figure]:
    num_images = sum(len(one.images) for one in found)
    kind = "bad" if parts.num_flagged else ""
    means = [Figure(one.column.heading, one.mean, one.references) for one in parts.distributions]
    return [
        Figure("models", f"{parts.count:,}", f"{num_images:,} images"),
        Figure("with faults", f"{parts.num_flagged:,}", f"of {parts.count:,}", kind),
        *means[:4],
    ]


def _worst(output: Store, parts: ScoreParts, found: Sequence[Evaluated]) -> list[WorstModel]:
    by_id = {one.id: one for one in found}
    return [
        WorstModel(model, by_id[model.id].class_noun, _pictures(output, by_id[model.id]))
        for model in parts.worst
    ]


def _pictures(output: Store, one: Evaluated) -> list[Picture]:
    """Return the images that are least like the subject; none if they cannot be read."""
    try:
        images = evaluations.read_images(output, one.name)
    except StoreError:
        return []
    rows = one.images.to_pylist()
    places = sorted(range(len(rows)), key=lambda place: rows[place]["identity"])
    # Of each prompt one image: otherwise a single prompt fills the row.
    first = {rows[place]["prompt"]: place for place in reversed(places)}
    chosen = sorted(first.values(), key=lambda place: rows[place]["identity"])[:_SHOWN]
    return [_picture(rows[place], images[place], one.id) for place in chosen]


def _picture(row: dict[str, object], image: bytes, subject: str) -> Picture:
    notes = [f"identity {row['identity']:.3f}"]
    if row["prompt_score"] is not None:
        notes.append(f"prompt {row['prompt_score']:.3f}")
    if row["nearest"] != subject:
        notes.append(f"nearest to {row['nearest']}")
    if row["is_copy"]:
        notes.append("a copy")
    return Picture(base64.b64encode(image).decode(), str(row["prompt"]), ", ".join(notes))
