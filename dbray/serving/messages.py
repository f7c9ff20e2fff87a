"""The messages between the HTTP ingress and the replicas, and the refusals of requests.

Plain data that crosses processes. Between processes a refusal is a value, because Ray would log an
exception of a replica with its text; within a process it is raised, as Refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, TypeVar

from dbray.spec.canon import UNTOUCHED
from dbray.spec.super_resolution import SuperResolution

BASE = UNTOUCHED
"""The model id of the untouched base."""

OutputFormat: TypeAlias = Literal["png", "webp", "jpeg"]

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}
# The rest of the request may still arrive, and would be read as the next request.
_CLOSE = {"connection": "close"}
_HEADERS = {401: {"www-authenticate": "Bearer"}, 408: _CLOSE, 413: _CLOSE, 431: _CLOSE}


@dataclass(frozen=True)
class Refusal:
    """Why a request is refused: an HTTP status and OpenAI's error body.

    `retry_after` (seconds) is set if a later request may succeed. OpenAI's clients retry every 5xx
    unless a header forbids it; a Refusal without `retry_after` sends that header.
    """

    status: int
    code: str
    message: str
    param: str | None = None
    retry_after: float | None = None

    def body(self) -> dict[str, dict[str, str | None]]:
        """OpenAI's error body."""
        fallback = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, fallback),
                "param": self.param,
                "code": self.code,
            }
        }

    def encoded(self) -> bytes:
        """The body as JSON."""
        return json.dumps(self.body()).encode()

    def headers(self) -> dict[str, str]:
        """Headers about retries, and those that the status requires."""
        headers = dict(_HEADERS.get(self.status, {}))
        if self.retry_after is None:
            return headers | {"x-should-retry": "false"}
        return headers | {"retry-after": str(max(1, math.ceil(self.retry_after)))}


class Refused(Exception):
    """Raises a Refusal within a process; it never crosses processes."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.code)
        self.refusal = refusal


@dataclass(frozen=True)
class Share:
    """A published model of a request, and how much its change of the base counts."""

    subject: str
    revision: str
    weight: float = 1.0

    def __str__(self) -> str:
        """'subject@revision', followed by '*weight' unless that is 1."""
        return self.name if self.weight == 1 else f"{self.name}*{self.weight!r}"

    @property
    def name(self) -> str:
        """'subject@revision'."""
        return f"{self.subject}@{self.revision}"


def shares_of(key: str) -> tuple[Share, ...]:
    """Return the models of an Ask's key; none for the base."""
    return () if key == BASE else tuple(map(_share, key.split("+")))


def _share(text: str) -> Share:
    name, _, weight = text.partition("*")
    subject, _, revision = name.partition("@")
    return Share(subject, revision, float(weight or 1))


def names_of(key: str) -> frozenset[str]:
    """Return 'subject@revision' of each model of an Ask's key."""
    return frozenset(share.name for share in shares_of(key))


@dataclass(frozen=True)
class Ask:
    """A request for images, checked and authorised.

    `models` are the published models whose changes of the base are added up; none for the
    untouched base. `sampling` holds the fields of `bases.generate.Sampling` that the caller set;
    the base has defaults for the others. `resolution` is that of the model's training, by which
    `size` (width, height) is filled in, and `super_resolution` its second stage. If `strict_size`,
    a size that the base cannot draw is refused.
    """

    models: tuple[Share, ...]
    tenant: str
    prompt: str
    seeds: tuple[int, ...]
    deadline_seconds: float
    sampling: Mapping[str, Any] = field(default_factory=dict)
    resolution: int | None = None
    super_resolution: SuperResolution | None = None
    size: tuple[int, int] | None = None
    strict_size: bool = False
    output_format: OutputFormat = "png"
    quality: int = 90
    partial_images: int = 0

    @property
    def texts(self) -> dict[str, str]:
        """The texts that the base reads, by the field of the request."""
        return {
            "prompt": self.prompt,
            "negative_prompt": self.sampling.get("negative_prompt", ""),
        }

    @property
    def key(self) -> str:
        """`subject@revision`, or several joined by '+', or 'base'; see `shares_of`."""
        return "+".join(map(str, self.models)) or BASE

    @property
    def subject(self) -> str:
        """The first model's subject; "" for the base."""
        return self.models[0].subject if self.models else ""

    def within(self, deadline_seconds: float) -> Ask:
        """The same request with another deadline."""
        return replace(self, deadline_seconds=deadline_seconds)


@dataclass(frozen=True)
class Begun:
    """The first image is being sampled. `source` is the tier that had the weights.

    `read` has the number of characters that the base reads of each text that it does not read to
    its end, by the field of the request.
    """

    source: str
    load_ms: float
    queue_ms: float
    width: int
    height: int
    read: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Partial:
    """An unfinished image; `number` counts the partial images of image `index`."""

    index: int
    number: int
    data: bytes


@dataclass(frozen=True)
class Finished:
    """One image, encoded."""

    index: int
    data: bytes


Event: TypeAlias = Begun | Partial | Finished | Refusal


@dataclass(frozen=True)
class Answer:
    """All images of a request, and their names on the shelf if they are kept there."""

    begun: Begun
    images: tuple[bytes, ...]
    names: tuple[str, ...] = ()


T = TypeVar("T")


def unless_refused(answer: T | Refusal) -> T:
    """Return an answer. Raises Refused if it is a refusal of another process."""
    if isinstance(answer, Refusal):
        raise Refused(answer)
    return answer


NOT_FOUND = Refusal(404, "model_not_found", "The model does not exist or is not yours.", "model")
UNUSABLE = Refusal(500, "model_unusable", "The model's files are damaged or for another base.")
TIMED_OUT = Refusal(504, "timed_out", "The images were not ready in time.", retry_after=1)
OVERLOADED = Refusal(503, "overloaded", "The server is busy; try again later.", retry_after=2)
LOST = Refusal(503, "replica_lost", "The replica died; try again.", retry_after=1)
NOT_READY = Refusal(503, "not_ready", "No replica is ready yet; try again.", retry_after=2)
NOTHING_HERE = Refusal(404, "not_found", "Nothing is served at this path.")
STORAGE_DOWN = Refusal(
    503, "storage_unavailable", "The registry's storage cannot be read now.", retry_after=5
)
BROKEN = Refusal(500, "internal_error", "The server failed; the failure was logged.", retry_after=1)


def base_name(base: str) -> str:
    """The name of a base as callers see it: of a folder only the last part."""
    return base.rstrip("/").rpartition("/")[2] if base.startswith(("/", ".", "~")) else base
