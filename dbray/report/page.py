"""Contents -> one HTML file with everything in it.

Owns the escaping. What users wrote reaches the page in two ways: as escaped text, and as JSON in
blocks that the browser does not run and that page.js puts into the page as text, never as HTML. A
Content-Security-Policy allows exactly this page's own script and style, and no request at all.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import shlex
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from dbray.errors import without_secrets
from dbray.records.results import Cause, Summary
from dbray.report.contents import MAX_DETAILED, Card, Contents
from dbray.spec.prompts import fill_prompt
from dbray.spec.sections import Recipe

_FOLDER = Path(__file__).resolve().parent

# In the order of a job's and a subject's life, each with its colour in page.css.
_PHASES = {
    "class images": 0, "training": 4, "lease": 1, "encode": 2, "reset": 3, "train": 4,
    "publish": 5, "previews": 6, "other": 8,
}  # fmt: skip
_OTHER_COLOUR = 7
_STATES = {
    "finished": "",
    "running": "The job is still running. This page shows what was done when it was written.",
    "broken": "The job ended with an error. Running it again continues where it stopped.",
    "stopped": "The job was stopped before its end, because too many subjects failed.",
    "interrupted": "The job was interrupted. Running it again continues where it stopped.",
}


def render(contents: Contents) -> str:
    """Return the text of the page."""
    style, script = _asset("page.css"), _asset("parts.js") + "\n" + _asset("page.js")
    # In nearly every job there is one recipe; each distinct one is in the page once.
    recipes = list(dict.fromkeys(card.record.recipe for card in contents.cards if card.record))
    values = {
        "policy": _policy(style, script),
        "title": escape(contents.job_id),
        "style": style,
        "script": script,
        "subtitle": _subtitle(contents),
        "notice": _notice(contents),
        "figures": _figures(contents),
        "failures": _failures(contents),
        "index": _json_block("index", _index(contents, recipes)),
        "subjects": "\n".join(
            _json_block(f"data-{number}", _card(card, contents, recipes))
            for number, card in enumerate(contents.cards)
            if card.is_detailed
        ),
    }
    # One pass: a value that looks like a placeholder stays what it is.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], _asset("page.html"))


def _asset(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    def source(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; img-src data:; style-src {source(style)}; "
        f"script-src {source(script)}; base-uri 'none'; form-action 'none'"
    )


def _json_block(name: str, value: Any) -> str:
    # "<" is all that could end a script element or open a comment in it.
    text = json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>'


def _subtitle(contents: Contents) -> str:
    job, summary = contents.job, contents.summary
    base = escape(job.base.name)
    if job.base.digest:
        base += f' <code title="digest of the base">{escape(job.base.digest[:12])}</code>'
    parts = [f"base {base}", escape(_when(summary.started_at or job.started_at))]
    if job.dbray_version:
        parts.append(f"dbray {escape(job.dbray_version)}")
    return "".join(f"<li>{part}</li>" for part in parts if part)


def _notice(contents: Contents) -> str:
    summary = contents.summary
    notices = [_STATES.get(summary.state, summary.state), summary.error]
    num_listed = sum(not card.is_detailed for card in contents.cards)
    if num_listed:
        notices.append(
            f"The first {MAX_DETAILED:,} failed subjects and the first {MAX_DETAILED:,} others "
            f"have images and details here. The other {num_listed:,} are listed with their "
            "results; 'dbray models show' tells more of each."
        )
    return "".join(f'<p class="notice" role="status">{escape(one)}</p>' for one in notices if one)


def _figures(contents: Contents) -> str:
    """The headline: a row of figures with what they count."""
    summary, total = contents.summary, len(contents.cards)
    counts = summary.counts
    figures = [
        ("Published", f"{counts.get('published', 0):,}", f"of {_plural(total, 'subject')}", "good")
    ]
    if counts.get("kept"):
        figures.append(("Kept", f"{counts['kept']:,}", "published before", ""))
    failed = counts.get("failed", 0)
    figures.append(("Failed", f"{failed:,}", _causes(summary), "bad" if failed else ""))
    if counts.get("unfinished"):
        figures.append(("Unfinished", f"{counts['unfinished']:,}", "run it again", ""))
    if summary.wall_seconds is not None:
        lanes = _plural(summary.lanes, "lane") if summary.lanes else ""
        figures.append(("Wall time", duration(summary.wall_seconds), lanes, ""))
    if summary.subjects_per_hour is not None:
        steps = _plural(summary.train_steps, "step") if summary.train_steps else ""
        figures.append(("Subjects per hour", _number(summary.subjects_per_hour), steps, ""))
    if summary.prior_images is not None:
        rate = summary.prior_images_per_second
        note = f"{_number(rate)} per second" if rate else ""
        figures.append(("Class images", f"{summary.prior_images:,}", note, ""))
    if summary.prior_sets is not None:
        figures.append(("Prior sets", f"{summary.prior_sets:,}", "one per class noun", ""))
    return "".join(
        f'<div class="figure {kind}"><dt>{escape(name)}</dt>'
        f"<dd>{_with_units(value)}<small>{escape(note)}</small></dd></div>"
        for name, value, note, kind in figures
    )


def _with_units(value: str) -> str:
    """Set the units of a time smaller than its figures."""
    return re.sub(r" (h|min|s)\b", r"<span>\1</span>", escape(value))


def _causes(summary: Summary) -> str:
    return _plural(len(summary.failures), "cause") if summary.failures else ""


def _failures(contents: Contents) -> str:
    summary = contents.summary
    if not summary.failures:
        return ""
    groups = "".join(_failure(failure) for failure in summary.failures)
    retry = ""
    if summary.retry_command:
        retry = (
            '<div class="retry"><p>Try the failed subjects again:</p>'
            f'<div class="command"><code>{escape(summary.retry_command)}</code></div></div>'
        )
    return (
        '<section aria-labelledby="failures-title"><h2 id="failures-title">Failures by cause</h2>'
        f'<ol class="failures">{groups}</ol>{retry}</section>'
    )


def _failure(failure: Cause) -> str:
    shown = failure.subjects[:20]
    links = " ".join(f'<a href="#{escape(_anchor(name))}">{escape(name)}</a>' for name in shown)
    more = failure.count - len(shown)
    rest = f" and {more:,} more" if more > 0 else ""
    return (
        f'<li><h3>{escape(failure.kind)} <span class="count">{failure.count:,}</span></h3>'
        f"<pre>{escape(failure.example)}</pre>"
        f'<p class="links">{links}{rest} '
        f'<button type="button" class="quiet" data-cause="{escape(failure.kind)}">'
        "show in the list</button></p></li>"
    )


def _anchor(subject_id: str) -> str:
    return f"subject-{subject_id}"


def _index(contents: Contents, recipes: list[Recipe]) -> dict[str, Any]:
    """What the page needs of all subjects at once: to search, filter, sort and share."""
    summary = contents.summary
    phases = _phases(summary)
    timings = [_timings(card) for card in contents.cards]
    return {
        "subjects": [_index_row(card) for card in contents.cards],
        "phases": _coloured([phases, *timings]),
        "phase_seconds": phases,
        "recipes": [_recipe(recipe) for recipe in recipes],
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
    }


def _of(result: Any, name: str) -> Any:
    return getattr(result, name) if result else None


def _card(card: Card, contents: Contents, recipes: list[Recipe]) -> dict[str, Any]:
    """What the page needs of one subject when its card comes into view."""
    return {
        "photographs": card.photographs,
        "missing": card.missing_photographs,
        "previews": [
            [preview.image, preview.base, preview.prompt, preview.base_prompt, preview.seed]
            for preview in card.previews
        ],
        "note": card.note,
        "loss": [[step, *map(_finite, rest)] for step, *rest in card.loss],
        "steps": card.record.steps if card.record else 0,
        "timings": _timings(card),
        "recipe": recipes.index(card.record.recipe) if card.record else None,
        "facts": _facts(card),
        "commands": _commands(card, contents),
    }


def _facts(card: Card) -> list[tuple[str, str]]:
    """Where a model came from, as names and values."""
    record = card.record
    if record is None:
        return []
    return [
        ("revision", record.revision),
        ("identifier", record.identifier),
        ("base", f"{record.base} {record.base_digest[:12]}"),
        ("class images", f"{record.prior.count} of set {record.prior_digest[:12]}"
         if record.prior_digest else "none"),
        ("class prompt", fill_prompt(record.prior.prompt, record.class_noun)),
        ("seed", str(record.seed)),
        ("published", _when(record.created_at)),
        ("files", ", ".join(record.files)),
        ("versions", ", ".join(f"{name} {version}" for name, version in record.versions.items())),
    ]  # fmt: skip


def _commands(card: Card, contents: Contents) -> list[tuple[str, str]]:
    """Lines to copy: generate images here, or from a server."""
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
    """Names, values, and whether each is other than the default."""
    usual = Recipe.model_validate({}).model_dump(mode="json")
    return [
        (name.replace("_", " "), "none" if value is None else _plain(value), value != usual[name])
        for name, value in recipe.model_dump(mode="json").items()
    ]


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _final_loss(card: Card) -> float | None:
    """Mean of the last tenth of the loss curve: single steps differ by their timesteps."""
    losses = [loss for _, loss, _, _ in card.loss if math.isfinite(loss)]
    last = losses[-max(1, len(losses) // 10) :]
    return _finite(sum(last) / len(last)) if last else None


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
    """Name every phase that occurs, in order, with the number of its colour."""
    met = dict.fromkeys(name for one in timings for name in one)
    names = [*(name for name in _PHASES if name in met), *(n for n in met if n not in _PHASES)]
    return [(name, _PHASES.get(name, _OTHER_COLOUR)) for name in names]


def duration(seconds: float) -> str:
    """Write a time as people say it: 0.42 s, 41 s, 12 min 5 s, 3 h 20 min."""
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


def _when(moment: str | None) -> str:
    """Shorten an ISO time to minutes; times are UTC."""
    if not moment:
        return ""
    match = re.match(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d)", moment)
    return f"{match[1]} {match[2]} UTC" if match else moment
