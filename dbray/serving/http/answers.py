"""The JSON of answers: OpenAI's Images API and its errors, and what dbray adds to them."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from dbray.scores.values import Scores
from dbray.serving.http.wire import Wire
from dbray.serving.messages import OutputFormat


class ImageData(Wire):
    """One image of a response."""

    b64_json: str | None = None
    url: str | None = None
    seed: int


class Usage(Wire):
    """Zeros: OpenAI's clients expect these fields, but images are not billed by token here."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    input_tokens_details: dict[str, int] = Field(default={"image_tokens": 0, "text_tokens": 0})


class ImagesResponse(Wire):
    """Answer of POST /v1/images/generations."""

    created: int
    model: str = Field(description="subject@revision that was served.")
    background: Literal["opaque"] = "opaque"
    output_format: OutputFormat
    size: str
    data: list[ImageData]
    usage: Usage = Usage()


class ModelFlag(Wire):
    """A fault that the scores show."""

    kind: str = Field(description="unlike, confused, copies, forgotten or ignores.")
    words: str
    evidence: str = Field(description="The figures that it was read from.")
    fix: str = Field(description="The change of the recipe to try.")


class ModelDetails(Wire):
    """What dbray adds to OpenAI's model object."""

    revision: str | None = None
    class_noun: str | None = None
    identifier: str | None = None
    base: str
    trained_steps: int | None = None
    resolution: int | None = Field(None, description="Side of its images; absent: the base's own.")
    previews: list[str] = Field(description="Names under /v1/models/{id}/previews/.")
    preview_prompts: list[str] = Field(default=[])
    scores: Scores | None = Field(
        None, description="Absent: not scored, or a list that is not sorted by a score."
    )
    flags: list[ModelFlag] | None = Field(None, description="Faults, with scores only.")


class ModelObject(Wire):
    """OpenAI's model object."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    dbray: ModelDetails


class ModelList(Wire):
    """Answer of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelObject]
    has_more: bool = False


class ErrorDetails(Wire):
    """What went wrong, with OpenAI's fields."""

    message: str
    type: str
    param: str | None = None
    code: str


class ErrorBody(Wire):
    """The body of every error."""

    error: ErrorDetails


class Health(Wire):
    """Answer of GET /healthz."""

    status: Literal["ok"] = "ok"


class Readiness(Wire):
    """Answer of GET /readyz."""

    model_config = ConfigDict(extra="allow")

    status: Literal["ok"] = "ok"


class Prediction(Wire):
    """An asynchronous request and its state."""

    id: str
    object: Literal["prediction"] = "prediction"
    status: Literal["processing", "succeeded", "failed", "canceled"]
    model: str
    created: int
    output: ImagesResponse | None = None
    error: ErrorDetails | None = None


class Warmth(Wire):
    """Answer of POST /v1/models/{id}:warm."""

    id: str
    revision: str
    source: str = Field(description="The tier that had the weights.")
    load_ms: float


class Deletion(Wire):
    """Answer of DELETE /v1/models/{id}, as OpenAI's."""

    id: str
    object: Literal["model"] = "model"
    deleted: Literal[True] = True
