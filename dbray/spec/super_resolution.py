"""The sections of a job about the stages of a cascade after the first, which enlarge its images.

Source: Ruiz et al. 2022 (arXiv 2208.12242), section 4.3: super-resolution is fine-tuned to the
subject too, and the noise on its low-resolution images is lowered so that fine detail survives.
"""

from __future__ import annotations

from pydantic import Field, field_validator

from dbray.spec.base import Spec
from dbray.spec.paths import Address
from dbray.spec.recipe import Recipe
from dbray.spec.sections import MAX_SAMPLING_STEPS, Sampler

NUM_NOISE_LEVELS = 1000


class Enlargement(Spec):
    """A network that enlarges images, how it draws, and what follows it."""

    base: Address | None = Field(
        default=None,
        description="A DeepFloyd IF II or a Stable Diffusion x4 upscaler: a diffusers folder or a "
        "hub id. Absent: that of the base, if the base is a cascade.",
    )
    base_revision: str | None = Field(
        default=None, description="Commit of a hub id, 40 hex digits."
    )
    noise_level: int = Field(
        default=0,
        ge=0,
        lt=NUM_NOISE_LEVELS,
        description="Noise on its low-resolution images, in training and whenever the model "
        "draws. The least keeps fine detail; DeepFloyd IF's own default is 250.",
    )
    sampler: Sampler = Field(default="ddpm", description="Its sampler.")
    steps: int = Field(
        default=50, ge=1, le=MAX_SAMPLING_STEPS, description="Its sampling steps per image."
    )
    guidance: float = Field(default=4.0, ge=1, le=50, description="Classifier-free guidance scale.")
    then: Enlargement | None = Field(
        default=None,
        description="A further network, which enlarges what this one draws and is never "
        "fine-tuned: of DeepFloyd IF, a Stable Diffusion x4 upscaler. It needs `base`; its "
        "noise_level is by default that of its pipeline.",
    )

    @field_validator("then")
    @classmethod
    def _has_a_base(cls, then: Enlargement | None) -> Enlargement | None:
        if then is not None and then.base is None:
            raise ValueError("it names no network; add its 'base', a diffusers folder or a hub id")
        return then

    @property
    def networks(self) -> tuple[tuple[str | None, str | None], ...]:
        """Base and revision of each network, in order."""
        return ((self.base, self.base_revision), *(self.then.networks if self.then else ()))


class SuperResolution(Enlargement):
    """The network that enlarges the images of the base, and how it is fine-tuned."""

    first_fields = frozenset({"train", "noise_level", "recipe"})

    train: bool = Field(
        default=True, description="Fine-tune it to each subject; else it enlarges as it is."
    )
    recipe: Recipe = Recipe()

    @property
    def as_it_is(self) -> Enlargement:
        """The same without fine-tuning."""
        return Enlargement.model_validate(self.model_dump(include=set(Enlargement.model_fields)))
