"""What passes between the HTTP ingress and the replicas, and how a request is refused.

Plain data: it crosses processes. Expected refusals are values, not exceptions, because Ray logs an
exception of a replica with its text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from dbray.spec.canon import UNTOUCHED
from dbray.spec.sections import Sampler

BASE = UNTOUCHED
"""The model id of the untouched base."""

OutputFormat: TypeAlias = Literal["png", "webp", "jpeg"]

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}


@dataclass(frozen=True)
class Refusal:
    """Why a request is not served: an HTTP status and OpenAI's error body.

    `retry_after` in seconds says that trying again later helps. OpenAI's client tries every 5xx
    again unless told otherwise, so a Refusal without `retry_after` tells it.
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

    def headers(self) -> dict[str, str]:
        """Headers that tell a client when to try again, or not to."""
        if self.retry_after is None:
            return {"x-should-retry": "false"}
        return {"retry-after": str(max(1, math.ceil(self.retry_after)))}


class Refused(Exception):
    """Carries a Refusal to the edge of a process; never across one."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.code)
        self.refusal = refusal


@dataclass(frozen=True)
class Ask:
    """One request for images, checked and authorised. None means the base's default.

    `subject` and `revision` name a published model; both are empty for the untouched base.
    `resolution` is that at which the model was trained: the default of `width` and `height`.
    """

    subject: str
    revision: str
    tenant: str
    prompt: str
    seeds: tuple[int, ...]
    deadline_seconds: float
    negative_prompt: str = ""
    sampler: Sampler | None = None
    steps: int | None = None
    guidance: float | None = None
    resolution: int | None = None
    width: int | None = None
    height: int | None = None
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
    """The first image is being sampled. `source` is the tier that had the weights."""

    source: str
    load_ms: float
    queue_ms: float
    width: int
    height: int


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
    """All images of a request."""

    begun: Begun
    images: tuple[bytes, ...]


NOT_FOUND = Refusal(404, "model_not_found", "The model does not exist or is not yours.", "model")
UNUSABLE = Refusal(500, "model_unusable", "The model's files are damaged or for another base.")
TIMED_OUT = Refusal(504, "timed_out", "The images were not ready in time.", retry_after=1)
OVERLOADED = Refusal(503, "overloaded", "The server is busy; try again later.", retry_after=2)
STORAGE_DOWN = Refusal(503, "storage_unavailable", "Storage does not answer.", retry_after=5)
BROKEN = Refusal(500, "internal_error", "The server failed; the failure was logged.", retry_after=1)


def base_name(base: str) -> str:
    """A base's name as callers may see it: of a folder, not where it lies."""
    return base.rstrip("/").rpartition("/")[2] if base.startswith(("/", ".", "~")) else base
