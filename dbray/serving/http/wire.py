"""The JSON of a request: OpenAI's Images API, and dbray's extensions to it.

Owns the fields, their limits, and their meaning for sampling. The JSON of answers is in `answers`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dbray.serving.http.findings import refusal_of
from dbray.serving.messages import BASE, OutputFormat, Refused
from dbray.spec.sections import MAX_SAMPLING_STEPS, Sampler

_MODEL = r"[a-z0-9][a-z0-9._-]{0,62}(@[0-9a-f]{6,12})?"
MODEL_PATTERN = f"^{_MODEL}$"
MAX_MODELS = 4
PREDICTION_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
MAX_PROMPT = 4000
MAX_LIST = 1000

ModelId = Annotated[str, Field(pattern=MODEL_PATTERN)]
ModelSum = Annotated[str, Field(pattern=rf"^{_MODEL}(\+{_MODEL}){{0,{MAX_MODELS - 1}}}$")]
Prompt = Annotated[str, Field(max_length=MAX_PROMPT)]

# OpenAI's fields that have no effect here, and the values that ask for what happens anyway.
_WITHOUT_EFFECT: dict[str, tuple[str, ...]] = {
    "quality": ("auto", "standard"),
    "background": ("auto", "opaque"),
    "moderation": ("auto",),
    "style": (),
    "input_fidelity": (),
}


class Wire(BaseModel):
    """Base of all bodies: strict types, and unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _allow_null(schema: dict[str, Any]) -> None:
    """Allow null in the schema: it is the same as an absent field."""
    for name, field in schema["properties"].items():
        if name in schema["required"] or "anyOf" in field:
            continue
        described = {key: field.pop(key) for key in ("title", "description") if key in field}
        schema["properties"][name] = {"anyOf": [field, {"type": "null"}], **described}


def _describe(schema: dict[str, Any]) -> None:
    """Complete the schema of a request: null is an absent field, and models are named once."""
    _allow_null(schema)
    schema["anyOf"] = [{"properties": {name: {"type": "null"}}} for name in ("model", "models")]


def _number(value: Any) -> Any:
    """JSON has one kind of number, and its schema calls 2.0 an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class WeightedModel(Wire):
    """A model of a sum, and how much its change of the base counts."""

    model: ModelId = Field(description="As in `model`, but one.")
    weight: float = Field(1.0, ge=-2, le=2, description="1: as it was trained.")


class GenerationRequest(Wire):
    """Body of POST /v1/images/generations. Fields that OpenAI does not have are dbray's own."""

    model_config = ConfigDict(json_schema_extra=_describe)

    prompt: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT)] = Field(
        description="What to draw. {subject} becomes '[identifier] [class noun]'."
    )
    model: ModelSum = Field(
        BASE,
        description="A subject, subject@revision, an alias, or 'base'. Low-rank models are added "
        f"up: 'rex+watercolour', at most {MAX_MODELS}; {{subject}} is the first.",
    )
    models: list[WeightedModel] | None = Field(
        None,
        min_length=1,
        max_length=MAX_MODELS,
        description="In place of `model`: low-rank models to add up, each with a weight.",
    )
    n: int = Field(1, ge=1, le=10, description="Images; image i is sampled from seed + i.")
    size: str = Field(
        "auto",
        pattern=r"^(auto|[1-9][0-9]{0,3}x[1-9][0-9]{0,3})$",
        description="WIDTHxHEIGHT, or auto. What the base cannot draw becomes the nearest size "
        "that it can, and the x-dbray-warning header says so.",
    )
    strict_size: bool = Field(False, description="Refuse a size that the base cannot draw.")
    response_format: Literal["b64_json", "url"] = Field(
        "b64_json", description="url gives addresses of this server that work for an hour."
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
    quality: Literal["auto", "standard", "hd", "low", "medium", "high"] = Field(
        "auto", description="Without effect."
    )
    background: Literal["auto", "opaque", "transparent"] = Field(
        "auto", description="Without effect: images are opaque."
    )
    moderation: Literal["auto", "low"] = Field("auto", description="Without effect.")
    style: Literal["vivid", "natural"] | None = Field(None, description="Without effect.")
    input_fidelity: Literal["low", "high"] | None = Field(None, description="Without effect.")
    user: Annotated[str, Field(max_length=256)] | None = None
    safety_identifier: Annotated[str, Field(max_length=256)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _as_json_means_it(cls, body: Any) -> Any:
        """Drop null, which OpenAI's clients send for absent fields; take 2.0 as the integer 2."""
        if not isinstance(body, dict):
            return body
        return {name: _number(value) for name, value in body.items() if value is not None}

    @property
    def weighted(self) -> list[tuple[str, float]]:
        """The names of the requested models, each with its weight."""
        if self.models:
            return [(one.model, one.weight) for one in self.models]
        return [(name, 1.0) for name in self.model.split("+")]

    @property
    def width_height(self) -> tuple[int, int] | None:
        """The requested size; None for 'auto'. Replicas know which sizes the base can draw."""
        if self.size == "auto":
            return None
        width, height = map(int, self.size.split("x"))
        return width, height

    @property
    def sampling(self) -> dict[str, Any]:
        """The fields of `bases.generate.Sampling` that the request sets, by their names there."""
        given = {
            "sampler": self.scheduler,
            "steps": self.num_inference_steps,
            "guidance": self.guidance_scale,
            "negative_prompt": self.negative_prompt or None,
        }
        return {name: value for name, value in given.items() if value is not None}

    @property
    def without_effect(self) -> list[str]:
        """Names of the fields that request something that does not happen."""
        values = {name: getattr(self, name) for name in _WITHOUT_EFFECT}
        return [
            name
            for name, value in values.items()
            if value is not None and value not in _WITHOUT_EFFECT[name]
        ]


def parse_request(body: bytes) -> GenerationRequest:
    """Read a body, whatever its content type says: curl -d calls everything a form.

    Raises Refused.
    """
    try:
        return GenerationRequest.model_validate_json(body)
    except ValidationError as exc:
        raise Refused(refusal_of(exc)) from None
