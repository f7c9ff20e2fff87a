"""When training stops before its last step, and which of its checkpoints is published."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from dbray.spec.base import Spec
from dbray.spec.prompts import check_class_prompts, check_subject_prompts


class Stop(Spec):
    """Renders at regular steps decide when a subject is learnt; part of every fingerprint."""

    first_fields = frozenset({
        "measure", "every", "patience", "tolerance", "learnt", "max_drift", "prompts",
        "class_prompts", "images", "sampling_steps", "seed",
    })  # fmt: skip

    measure: Literal["identity"] = Field(
        default="identity",
        description="identity: the mean cosine of renders and photographs, by the job's embedder.",
    )
    every: int = Field(default=50, ge=1, le=100_000, description="Steps between two measurements.")
    patience: int = Field(
        default=2, ge=1, le=100, description="Measurements without a better one that end training."
    )
    tolerance: float = Field(
        default=0.01, ge=0, le=1, description="A better measurement exceeds the best by more."
    )
    learnt: float = Field(
        default=0.8,
        ge=0,
        le=1,
        description="Training does not end before identity is this share of its ceiling, which is "
        "that of the photographs compared with each other.",
    )
    max_drift: float = Field(
        default=1.2,
        gt=0,
        le=2,
        description="Checkpoints whose renders of class prompts have moved further from the base's "
        "(1 - mean cosine) are not published while there is another. The figures depend on the "
        "embedder; the default excludes only those that have nothing left in common.",
    )
    prompts: tuple[str, ...] = Field(
        default=("a photo of a {subject} on the grass", "a photo of a {subject} on a wooden floor"),
        min_length=1,
        description="Prompts of the subject: {subject} is '[identifier] [class noun]'.",
    )
    class_prompts: tuple[str, ...] = Field(
        default=("a photo of a {class}",),
        min_length=1,
        description="Prompts without the subject, by which drift is measured.",
    )
    images: int = Field(default=2, ge=1, le=64, description="Renders of each prompt.")
    sampling_steps: int = Field(default=12, ge=1, le=999, description="Sampling steps of a render.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="The same at every measurement.")

    @field_validator("prompts")
    @classmethod
    def _name_the_subject(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        return check_subject_prompts(prompts)

    @field_validator("class_prompts")
    @classmethod
    def _leave_out_the_subject(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        return check_class_prompts(prompts)
