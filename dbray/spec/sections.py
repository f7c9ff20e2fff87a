"""The sections of a job that say what is sampled and named: Prior, Previews, Scoring, Identifiers.

Owns their defaults and the meaning of their fields. Reads no files and does not look at hardware.
Unknown keys are errors, because a misspelt key that silently means "the default" costs GPU hours.
Sources of the defaults: Ruiz et al. 2022 (arXiv 2208.12242), section 4 and supplementary material.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from dbray.spec.base import Spec
from dbray.spec.prompts import check_class_prompts, check_subject_prompts, check_template
from dbray.spec.suites import expand_suites

MAX_SAMPLING_STEPS = 999
"""A schedule has 1000 timesteps; leading spacing with offset 1 has room for one step less."""

Sampler = Literal["ddpm", "euler_ancestral", "ddim", "dpm++", "dpm++_sde", "euler"]
"""Of all families together; each has some of them."""

# The paper's kinds of prompts: recontextualisation, art rendition, accessory, and a last plain one
# that shows whether the class has drifted towards the subject.
DEFAULT_PREVIEW_PROMPTS = (
    "a photo of a {subject} in the jungle",
    "a photo of a {subject} on the beach",
    "a photo of a {subject} in the snow",
    "a painting of a {subject} in the style of Vincent van Gogh",
    "a photo of a {subject} wearing a hat",
    "a {class}",
)
DEFAULT_SCORED_PROMPTS = (
    "a photo of a {subject} in the jungle",
    "a photo of a {subject} on the beach",
    "a photo of a {subject} in the snow",
    "a photo of a {subject} in the city",
)
DEFAULT_CLASS_PROMPTS = ("a photo of a {class}", "a photo of a car in the city")


_TAUGHT = {"kind", "prompt"}
"""Fields of a prior that matter to a teacher."""


class Prior(Spec):
    """How the class is kept: by class images, sampled as said here, or by the base as teacher."""

    first_fields = frozenset({"count", "prompt", "sampler", "steps", "guidance", "seed"})

    kind: Literal["images", "teacher"] = Field(
        default="images",
        description="images: class images, sampled from the base once per class noun, as in the "
        "paper. teacher: no class images; what the untouched base predicts for the class prompt on "
        "the subject's noisy photographs is what it must go on predicting.",
    )
    count: int = Field(
        default=200,
        ge=1,
        le=10_000,
        description="Class images per class noun; where it is raised, only new ones are sampled.",
    )
    prompt: str = Field(
        default="a {class}",
        description='The paper\'s "a [class noun]"; "an" before the sound of a vowel.',
    )
    sampler: Sampler = Field(
        default="ddpm",
        description="The paper uses an ancestral sampler. Bases trained by flow matching have "
        "euler alone, which is their default.",
    )
    steps: int = Field(
        default=50, ge=1, le=MAX_SAMPLING_STEPS, description="Sampling steps per image."
    )
    guidance: float = Field(default=7.5, ge=1, le=50, description="Classifier-free guidance scale.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Image i is sampled from (seed, i).")

    @property
    def makes_images(self) -> bool:
        """Whether class images are sampled."""
        return self.kind == "images"

    def identity(self) -> Any:
        """See Spec; of a teacher nothing but the prompt decides anything."""
        return super().identity() if self.makes_images else self.model_dump(include=_TAUGHT)

    @field_validator("prompt")
    @classmethod
    def _names_the_class(cls, prompt: str) -> str:
        return check_template(prompt, required="{class}", allowed=("{class}",))


class Previews(Spec):
    """What is sampled for every subject after training, and for the base beside it."""

    prompts: tuple[str, ...] = Field(
        default=DEFAULT_PREVIEW_PROMPTS,
        description="{subject} is '[identifier] [class noun]', {class} the class noun. Names of "
        "suites, which 'dbray prompts' lists, stand for their prompts.",
    )
    sampler: Sampler = Field(default="ddim", description="Sampler of the previews.")
    steps: int = Field(
        default=50, ge=1, le=MAX_SAMPLING_STEPS, description="Sampling steps per preview."
    )
    guidance: float = Field(default=7.5, ge=1, le=50, description="Classifier-free guidance scale.")
    seed: int = Field(
        default=0, ge=0, lt=2**63, description="The same for the subject and the base."
    )

    @field_validator("prompts", mode="before")
    @classmethod
    def _named_suites(cls, prompts: Any) -> Any:
        return expand_suites(prompts)

    @field_validator("prompts")
    @classmethod
    def _known_placeholders(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_template(p, allowed=("{subject}", "{class}")) for p in prompts)


class Scoring(Spec):
    """How published models are scored. Images are sampled as the previews are."""

    embedder: str | None = Field(
        default=None,
        description="Embedder that compares images with photographs: miniature-vit, a folder, or "
        "a hub id such as facebook/dinov2-base. Absent: no scores.",
    )
    embedder_revision: str | None = Field(default=None, description="Commit of a hub id.")
    clip: str | None = Field(
        default=None,
        description="CLIP that compares images with prompts: miniature-clip, a folder, or a hub "
        "id such as openai/clip-vit-base-patch32. Absent: no prompt scores.",
    )
    clip_revision: str | None = Field(default=None, description="Commit of a hub id.")
    prompts: tuple[str, ...] = Field(
        default=DEFAULT_SCORED_PROMPTS,
        min_length=1,
        description="Prompts of the subject: {subject} is '[identifier] [class noun]'. Names of "
        "suites, which 'dbray prompts' lists, stand for their prompts.",
    )
    class_prompts: tuple[str, ...] = Field(
        default=DEFAULT_CLASS_PROMPTS,
        min_length=1,
        description="Prompts without the subject, to see how far the model has moved from the "
        "base: of its class noun, {class}, and of other things. At least one has {class}.",
    )
    perceptual: bool = Field(
        default=False,
        description="Also measure diversity by ST-LPIPS, a perceptual distance for photographs; "
        "needs dbray[perceptual].",
    )
    images: int = Field(default=4, ge=2, le=64, description="Images of each prompt.")
    seed: int = Field(
        default=0, ge=0, lt=2**63, description="The same for all models and for the base."
    )

    @field_validator("prompts", mode="before")
    @classmethod
    def _named_suites(cls, prompts: Any) -> Any:
        return expand_suites(prompts)

    @field_validator("prompts")
    @classmethod
    def _name_the_subject(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        return check_subject_prompts(prompts)

    @field_validator("class_prompts")
    @classmethod
    def _leave_out_the_subject(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        if not any("{class}" in prompt for prompt in prompts):
            raise ValueError("no prompt contains {class}; 'a photo of a {class}' shows whether the "
                             "class is kept")  # fmt: skip
        return check_class_prompts(prompts)


class Identifiers(Spec):
    """Where identifiers are looked for in the base's vocabulary (paper, section 3.2)."""

    rank_range: tuple[int, int] | None = Field(
        default=None,
        description="Token ids to choose from, first included, last not. Absent: of a large "
        "vocabulary of byte pairs, as CLIP's, the last fifth; of another large one the paper's "
        "[5000, 10000); else all of it.",
    )
    num_tokens: int | None = Field(
        default=None,
        ge=1,
        le=3,
        description="Tokens per identifier (k); absent: the fewest that give each subject its own.",
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="Root of the draw.")
