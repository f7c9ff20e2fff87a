"""The JSON of the HTTP interface: OpenAI's Images API, and dbray's extensions to it.

Owns the fields, their limits, and the translation of pydantic's findings to OpenAI's error body.
Nothing of a request's content is ever put into an error: it would end up in somebody's log.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dbray.serving.messages import BASE, OutputFormat, Refusal
from dbray.spec.sections import MAX_SAMPLING_STEPS, Sampler

MODEL_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}(@[0-9a-f]{6,12})?$"
MAX_PROMPT = 4000
MAX_SIDE = 2048

ModelId = Annotated[str, Field(pattern=MODEL_PATTERN)]
Prompt = Annotated[str, Field(max_length=MAX_PROMPT)]


class Wire(BaseModel):
    """Base of all bodies: strict types, and unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class GenerationRequest(Wire):
    """Body of POST /v1/images/generations. The fields from `seed` on are dbray's own."""

    prompt: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT)] = Field(
        description="What to draw. {subject} becomes '[identifier] [class noun]'."
    )
    model: ModelId = Field(BASE, description="A subject, subject@revision, or 'base'.")
    n: int = Field(1, ge=1, le=10, description="Images; image i is sampled from seed + i.")
    size: str = Field(
        "auto", pattern=r"^(auto|[0-9]{1,6}x[0-9]{1,6})$", description="WIDTHxHEIGHT, or auto."
    )
    response_format: Literal["b64_json", "url"] = Field(
        "b64_json", description="url gives a data: URL."
    )
    output_format: OutputFormat = "png"
    output_compression: int = Field(90, ge=0, le=100, description="Quality of webp and jpeg.")
    stream: bool = Field(False, description="Server-sent events.")
    partial_images: int = Field(0, ge=0, le=3, description="Unfinished images, when streaming.")
    seed: int | None = Field(None, ge=0, lt=2**63, description="Absent: drawn at random.")
    num_inference_steps: int | None = Field(None, ge=1, le=MAX_SAMPLING_STEPS)
    guidance_scale: float | None = Field(None, ge=1, le=50)
    negative_prompt: Prompt = ""
    scheduler: Sampler | None = None
    # OpenAI's own, with the only meaning they can have here.
    quality: Literal["auto", "standard"] = "auto"
    background: Literal["auto", "opaque"] = "auto"
    moderation: Literal["auto", "low"] = "auto"
    user: Annotated[str, Field(max_length=256)] | None = None
    safety_identifier: Annotated[str, Field(max_length=256)] | None = None


class ImageData(Wire):
    """One image of a response."""

    b64_json: str | None = None
    url: str | None = None
    seed: int


class Usage(Wire):
    """OpenAI's clients want one; images are not billed by token here."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    input_tokens_details: dict[str, int] = {"image_tokens": 0, "text_tokens": 0}


class ImagesResponse(Wire):
    """Answer of POST /v1/images/generations."""

    created: int
    model: str = Field(description="subject@revision that was served.")
    background: Literal["opaque"] = "opaque"
    output_format: OutputFormat
    size: str
    data: list[ImageData]
    usage: Usage = Usage()


class ModelDetails(Wire):
    """What dbray adds to OpenAI's model object."""

    revision: str | None
    class_noun: str | None
    identifier: str | None
    base: str
    trained_steps: int | None
    resolution: int | None = Field(description="Side of its images; absent: the base's own.")
    previews: list[str] = Field(description="Names under /v1/models/{id}/previews/.")
    preview_prompts: list[str] = []


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


class Prediction(Wire):
    """An asynchronous request and what became of it."""

    id: str
    object: Literal["prediction"] = "prediction"
    status: Literal["processing", "succeeded", "failed", "canceled"]
    model: str
    created: int
    output: ImagesResponse | None = None
    error: dict[str, str | None] | None = None


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


def parse_request(body: bytes) -> GenerationRequest | Refusal:
    """Read a body, whatever its content type says: curl -d calls everything a form."""
    try:
        return GenerationRequest.model_validate_json(body)
    except ValidationError as exc:
        return refusal_of(exc)


def refusal_of(exc: ValidationError) -> Refusal:
    """Translate the first finding: the field and what is wrong with it, never what was sent."""
    finding: Any = exc.errors(include_url=False, include_input=False, include_context=False)[0]
    if finding["type"] == "json_invalid":
        return Refusal(400, "invalid_json", "The body is not valid JSON.")
    if not finding["loc"]:
        return Refusal(400, "invalid_body", "The body must be a JSON object.")
    field = str(finding["loc"][0])
    if finding["type"] == "extra_forbidden":
        # The name is the caller's text: shown only as far as it can be a field's name.
        shown = field if field.isidentifier() and len(field) <= 64 else "?"
        return Refusal(400, "unknown_parameter", f"Unknown parameter: '{shown}'.", shown)
    if finding["type"] == "missing":
        return Refusal(
            400, "missing_required_parameter", f"Missing required parameter: '{field}'.", field
        )
    return Refusal(400, "invalid_value", f"Invalid '{field}': {finding['msg']}.", field)


def parse_size(size: str) -> tuple[int, int] | Refusal | None:
    """Width and height; None for 'auto'. What the base can draw is for the replica to say."""
    if size == "auto":
        return None
    width, height = (int(side) for side in size.split("x"))
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        return Refusal(
            400, "invalid_value", f"Invalid 'size': a side is 1 to {MAX_SIDE} pixels.", "size"
        )
    return width, height
