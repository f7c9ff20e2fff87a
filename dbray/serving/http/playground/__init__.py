"""The files of the page at /playground, and how they are sent. No build step."""

from __future__ import annotations

from importlib.resources import files

from fastapi import Response

from dbray.serving.messages import Refusal, Refused

_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "api.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
# What users wrote is shown as text only; should that ever fail, this stops it from running.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def response(name: str) -> Response:
    """One file of the page. Raises Refused for any other name."""
    if name not in _TYPES:
        raise Refused(Refusal(404, "not_found", "There is nothing here."))
    content = files("dbray.serving.http.playground").joinpath(name).read_bytes()
    headers = {"content-security-policy": _POLICY, "cache-control": "no-cache"}
    return Response(content, media_type=_TYPES[name], headers=headers)
