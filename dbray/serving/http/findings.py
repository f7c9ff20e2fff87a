"""Translates pydantic's findings about a body to OpenAI's error body.

Errors never contain the content of a request, because they are logged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from dbray.serving.messages import Refusal


def refusal_of(exc: ValidationError) -> Refusal:
    """Translate the first finding: the field and what is wrong with it, never what was sent."""
    finding: Any = exc.errors(include_url=False, include_input=False, include_context=False)[0]
    if finding["type"] == "json_invalid":
        return Refusal(400, "invalid_json", "The body is not valid JSON.")
    if not finding["loc"]:
        return Refusal(400, "invalid_body", "The body must be a JSON object.")
    *parents, last = finding["loc"]
    field = _path(finding["loc"])
    if finding["type"] == "extra_forbidden":
        # The name is the caller's text: shown only if it can be a field's name.
        shown = _path([*parents, last if last.isidentifier() and len(last) <= 64 else "?"])
        return Refusal(400, "unknown_parameter", f"Unknown parameter: '{shown}'.", shown)
    if finding["type"] == "missing":
        return Refusal(
            400, "missing_required_parameter", f"Missing required parameter: '{field}'.", field
        )
    return Refusal(400, "invalid_value", f"Invalid '{field}': {finding['msg']}.", field)


def _path(parts: Sequence[str | int]) -> str:
    """Return the place of a field: 'models[0].weight'."""
    steps = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return "".join(steps).removeprefix(".")
