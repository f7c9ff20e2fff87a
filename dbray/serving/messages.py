"""What passes between the HTTP ingress and the replicas, and how a request is refused.

Plain data: it crosses processes. Between processes an expected refusal is a value, because Ray logs
an exception of a replica with its text; within a process it is raised, as Refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, TypeVar

from dbray.spec.canon import UNTOUCHED

BASE = UNTOUCHED
"""The model id of the untouched base."""

OutputFormat: TypeAlias = Literal["png", "webp", "jpeg"]

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}
# Where more of a request may still arrive, it would be read as the next one.
_CLOSE = {"connection": "close"}
_HEADERS = {401: {"www-authenticate": "Bearer"}, 408: _CLOSE, 413: _CLOSE, 431: _CLOSE}


@dataclass(frozen=True)
class Refusal:
    """Why a request is not served: an HTTP status and OpenAI's error body.

    `retry_after` in seconds says that trying again later helps. OpenAI's client retries every 5xx
    unless a header forbids it, which is sent for a Refusal without `retry_after`.
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
        """The same as JSON."""
        return json.dumps(self.body()).encode()

    def headers(self) -> dict[str, str]:
        """Headers that say when to try again, or not to, and what the status requires."""
        headers = dict(_HEADERS.get(self.status, {}))
        if self.retry_after is None:
            return headers | {"x-should-retry": "false"}
        return headers | {"retry-after": str(max(1, math.ceil(self.retry_after)))}


class Refused(Exception):
    """Carries a Refusal to the edge of a process; never across one."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.code)
        self.refusal = refusal


@dataclass(frozen=True)
class Ask:
    """One request for images, checked and authorised.

    `subject` and `revision` name a published model; both are empty for the untouched base.
    `sampling` holds the fields of `method.generate.Sampling` that the caller set; the base has
    defaults for the others. `resolution` is that at which the model was trained: the default of
    `size`, which is width and height. A size that the base cannot draw is refused if `strict_size`.
    """

    subject: str
    revision: str
    tenant: str
    prompt: str
    seeds: tuple[int, ...]
    deadline_seconds: float
    sampling: Mapping[str, Any] = field(default_factory=dict)
    resolution: int | None = None
    size: tuple[int, int] | None = None
    strict_size: bool = False
    output_format: OutputFormat = "png"
    quality: int = 90
    partial_images: int = 0

    @property
    def key(self) -> str:
        """`subject@revision`, or 'base'."""
        return f"{self.subject}@{self.revision}" if self.subject else BASE

    def within(self, deadline_seconds: float) -> Ask:
        """The same with less time."""
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
    """An image as it is so far; `number` counts the partial images of image `index`."""

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
    """All images of a request, and their names on the shelf if they were put there."""

    begun: Begun
    images: tuple[bytes, ...]
    names: tuple[str, ...] = ()


T = TypeVar("T")


def unless_refused(answer: T | Refusal) -> T:
    """Return an answer. Raises Refused where it is a refusal from another process."""
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
    """A base's name as callers may see it: of a folder, only its last part."""
    return base.rstrip("/").rpartition("/")[2] if base.startswith(("/", ".", "~")) else base
