"""Contents -> one HTML file with everything in it.

What users wrote reaches the page in two ways: as text, which the template escapes, and as JSON in
blocks that the browser does not run; page.js inserts their values as text, never as HTML. A
Content-Security-Policy allows only this page's own script and style, and no requests.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterable
from typing import Any

from dbray.errors import without_secrets
from dbray.records.record import ModelRecord
from dbray.records.results import Summary
from dbray.report import templates
from dbray.report.contents import Card, Contents
from dbray.report.headline import figures_of, notices_of
from dbray.report.score_parts import ScoredModel, score_parts
from dbray.report.templates import asset
from dbray.scores.values import COLUMNS, references, shown, value_of
from dbray.spec.prompts import NO_NOUN, fill_prompt
from dbray.spec.recipe import Recipe

# In the order in which a job and a subject go through them, each with its colour in page.css.
_PHASES = {
    "class images": 0, "packing": 3, "training": 4, "lease": 1, "encode": 2, "reset": 3,
    "teacher": 0, "train": 4, "fidelity": 1, "publish": 5, "previews": 6, "scores": 5, "other": 8,
}  # fmt: skip
_OTHER_COLOUR = 7


def render(contents: Contents) -> str:
    """Return the text of the page."""
    # Nearly every job has one recipe; each distinct one is in the page once.
    recipes = list(dict.fromkeys(card.record.recipe for card in contents.cards if card.record))
    job, summary = contents.job, contents.summary
    return templates.render(
        "page.html",
        asset("parts.js") + "\n" + asset("page.js"),
        job_id=contents.job_id,
        base=job.base,
        started_at=_when(summary.started_at or job.started_at),
        dbray_version=job.dbray_version,
        notices=notices_of(contents),
        figures=figures_of(contents),
        scores=score_parts(
            [ScoredModel(card.id, card.scores) for card in contents.cards if card.scores]
        ),
        columns=list(COLUMNS.values()),
        sorts=list(COLUMNS.items()),
        failures=summary.failures,
        retry_command=summary.retry_command,
        index=_index(contents, recipes),
        cards=(
            (number, _card(card, contents, recipes))
            for number, card in enumerate(contents.cards)
            if card.is_detailed
        ),
    )


def _index(contents: Contents, recipes: list[Recipe]) -> dict[str, Any]:
    """What the page needs to know of all subjects, to search, filter and sort them."""
    summary = contents.summary
    phases = _phases(summary)
    timings = [_timings(card) for card in contents.cards]
    return {
        "subjects": [_index_row(card) for card in contents.cards],
        "phases": _coloured([phases, *timings]),
        "phase_seconds": phases,
        "recipes": [_recipe(recipe) for recipe in recipes],
        "high": [name for name, column in COLUMNS.items() if column.is_high_good],
        "bases": contents.thumbnails.shared,
        "side": contents.thumbnails.side,
    }


def _index_row(card: Card) -> dict[str, Any]:
    result = card.result
    return {
        "id": card.id,
        "noun": card.class_noun,
        "status": card.status,
        "identifier": card.record.identifier if card.record else _of(result, "identifier"),
        "attempts": _of(result, "attempts"),
        "seconds": _finite(_of(result, "seconds")),
        "error": [result.error.kind, result.error.message, result.error.retryable]
        if result and result.error
        else None,
        "loss": _final_loss(card),
        "scores": _scores(card),
    }


def _of(result: Any, name: str) -> Any:
    return getattr(result, name) if result else None


def _card(card: Card, contents: Contents, recipes: list[Recipe]) -> dict[str, Any]:
    """What the page needs to know of one subject when its card comes into view."""
    return {
        "photographs": card.photographs,
        "missing": card.missing_photographs,
        "previews": [
            [preview.image, preview.base, preview.prompt, preview.base_prompt, preview.seed]
            for preview in card.previews
        ],
        "note": card.note,
        "loss": [[step, *map(_finite, rest)] for step, *rest in card.loss],
        "steps": card.num_steps,
        "fidelity": [[step, *map(_finite, rest)] for step, *rest in card.fidelity],
        "published": card.record.steps if card.record else 0,
        "timings": _timings(card),
        "recipe": recipes.index(card.record.recipe) if card.record else None,
        "facts": _facts(card),
        "scores": _scores_with_references(card),
        "flags": [[flag.words, flag.evidence, flag.fix] for flag in card.flags],
        "commands": _commands(card, contents),
    }


def _facts(card: Card) -> list[tuple[str, str]]:
    """How a model was made, as names and values."""
    record = card.record
    if record is None:
        return []
    return [
        ("revision", record.revision),
        ("identifier", record.identifier),
        ("base", f"{record.base} {record.base_digest[:12]}"),
        *([("served by", record.serve_base)] if record.serve_base else []),
        *([("ablation", record.ablation)] if record.ablation else []),
        ("class images", _class_images(record)),
        ("class prompt", fill_prompt(record.prior.prompt, record.class_noun)),
        ("seed", str(record.seed)),
        ("published", _when(record.created_at)),
        ("files", ", ".join(record.files)),
        ("versions", ", ".join(f"{name} {version}" for name, version in record.versions.items())),
    ]  # fmt: skip


def _class_images(record: ModelRecord) -> str:
    if record.prior_digest:
        return f"{record.prior.count} of set {record.prior_digest[:12]}"
    keeps_class = record.recipe.prior_weight > 0 and record.class_noun != NO_NOUN
    is_taught = keeps_class and not record.prior.makes_images
    return "none; the base is the teacher" if is_taught else "none"


def _commands(card: Card, contents: Contents) -> list[tuple[str, str]]:
    """Commands to copy: generate images here, or from a server."""
    if card.record is None:
        return []
    job, model = contents.job.job, f"{card.record.id}@{card.record.revision}"
    prompts = (prompt for prompt in job.previews.prompts if "{subject}" in prompt)
    prompt = next(prompts, "a photo of a {subject}")
    request = json.dumps({"model": model, "prompt": prompt, "n": 4, "seed": 0})
    generate = ["dbray", "generate", model, prompt, "-n", "4", "-o", "out/"]
    generate += ["--registry", without_secrets(job.storage)]
    curl = (
        'curl localhost:8000/v1/images/generations -H "Authorization: Bearer $KEY" '
        f"-H 'Content-Type: application/json' -d {shlex.quote(request)}"
    )
    return [("Generate", shlex.join(generate)), ("From a server", curl)]


def _recipe(recipe: Recipe) -> list[tuple[str, str, bool]]:
    """Names, values, and whether each differs from the default."""
    usual = Recipe.model_validate({}).model_dump(mode="json", exclude={"preset"})
    return [
        (name.replace("_", " "), "none" if value is None else _plain(value), value != usual[name])
        for name, value in recipe.model_dump(mode="json", exclude={"preset"}).items()
    ]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        chosen = [f"{name} {_plain(one)}" for name, one in value.items() if one is not None]
        return ", ".join(chosen) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _final_loss(card: Card) -> float | None:
    """Mean of the last tenth of the loss curve: single steps differ by their timesteps."""
    losses = [loss for _, loss, _, _ in card.loss if math.isfinite(loss)]
    last = losses[-max(1, len(losses) // 10) :]
    return _finite(sum(last) / len(last)) if last else None


def _scores(card: Card) -> dict[str, float | None] | None:
    """Return the score of each column, to sort by."""
    if card.scores is None:
        return None
    return {name: value_of(card.scores, name) for name in COLUMNS}


def _scores_with_references(card: Card) -> list[tuple[str, str, str, str]]:
    """Return heading, figure, what it is compared with, and meaning of each score."""
    if card.scores is None:
        return []
    return [(one.heading, shown(getattr(card.scores, one.field)), references(card.scores, one),
             one.meaning) for one in COLUMNS.values()]  # fmt: skip


def _finite(value: float | None) -> float | None:
    """Round to 4 digits; JSON has no NaN."""
    return float(f"{value:.4g}") if value is not None and math.isfinite(value) else None


def _timings(card: Card) -> dict[str, float]:
    """Seconds of one subject by phase."""
    timings = _of(card.result, "timings") or (card.record.timings if card.record else {})
    return {name: round(value, 3) for name, value in timings.items() if math.isfinite(value)}


def _phases(summary: Summary) -> dict[str, float]:
    """Seconds of the job by phase, and the rest of its wall time: start-up, mostly."""
    phases = {name: round(seconds, 1) for name, seconds in summary.phase_seconds.items()}
    rest = (summary.wall_seconds or 0.0) - sum(phases.values())
    return phases | ({"other": round(rest, 1)} if phases and rest >= 0.1 else {})


def _coloured(timings: Iterable[dict[str, float]]) -> list[tuple[str, int]]:
    """Every phase that occurs, in order, with the number of its colour."""
    seen = dict.fromkeys(name for one in timings for name in one)
    names = [*(name for name in _PHASES if name in seen), *(n for n in seen if n not in _PHASES)]
    return [(name, _PHASES.get(name, _OTHER_COLOUR)) for name in names]


def _when(moment: str | None) -> str:
    """Shorten an ISO time to minutes; times are UTC."""
    if not moment:
        return ""
    match = re.match(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d)", moment)
    return f"{match[1]} {match[2]} UTC" if match else moment
