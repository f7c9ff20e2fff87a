"""The pages at /playground and /docs, and how their files are sent. No build step, no network."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import jinja2
from fastapi import Response

from dbray.serving.messages import NOTHING_HERE, Refused
from dbray.spec.suites import LIVING, SUITES

_SCRIPTS = ("api", "app", "dom", "drawing", "gallery", "scores", "suites")
_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    **{f"{name}.js": "text/javascript; charset=utf-8" for name in _SCRIPTS},
    "icon.svg": "image/svg+xml",
}
# Users' text is shown as text only; should that fail, this prevents its execution.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def response(name: str) -> Response:
    """One file of the page. Raises Refused for any other name."""
    if name not in _TYPES:
        raise Refused(NOTHING_HERE)
    return _sent(_read(name), _TYPES[name])


def docs(schema: dict[str, Any]) -> Response:
    """The OpenAPI schema as a page."""
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    text = page.from_string(_read("docs.html").decode()).render(schema=schema)
    return _sent(text.encode(), _TYPES["index.html"])


def _read(name: str) -> bytes:
    if name == "suites.js":
        return _suites()
    return files("dbray.serving.http.playground").joinpath(name).read_bytes()


def _suites() -> bytes:
    """Return the suites of prompts, and the living nouns, as a script."""
    suites = {name: suite._asdict() for name, suite in SUITES.items()}
    lines = (f"export const SUITES = {json.dumps(suites)};",
             f"export const LIVING = new Set({json.dumps(sorted(LIVING))});")  # fmt: skip
    return "\n".join(lines).encode()


def _sent(content: bytes, media_type: str) -> Response:
    headers = {"content-security-policy": _POLICY, "cache-control": "no-cache"}
    return Response(content, media_type=media_type, headers=headers)
