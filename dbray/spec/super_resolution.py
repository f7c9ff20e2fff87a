"""The section of a job about the second stage of a cascade: the network that enlarges the images.

Source: Ruiz et al. 2022 (arXiv 2208.12242), section 4.3: super-resolution is fine-tuned to the
subject too, and the noise on its low-resolution images is lowered so that fine detail survives.
"""

from __future__ import annotations

from pydantic import Field

from dbray.spec.base import Spec
from dbray.spec.paths import Address
from dbray.spec.recipe import Recipe
from dbray.spec.sections import MAX_SAMPLING_STEPS, Sampler

NUM_NOISE_LEVELS = 1000


class SuperResolution(Spec):
    """The network that enlarges the images of the base, and how it is fine-tuned."""

    first_fields = frozenset({"train", "noise_level", "recipe"})

    base: Address | None = Field(
        default=None,
        description="A DeepFloyd IF II or a Stable Diffusion x4 upscaler: a diffusers folder or a "
        "hub id. Absent: that of the base, if the base is a cascade.",
    )
    base_revision: str | None = Field(
        default=None, description="Commit of a hub id, 40 hex digits."
    )
    train: bool = Field(
        default=True, description="Fine-tune it to each subject; else it enlarges as it is."
    )
    noise_level: int = Field(
        default=0,
        ge=0,
        lt=NUM_NOISE_LEVELS,
        description="Noise on its low-resolution images, in training and whenever the model "
        "draws. The least keeps fine detail; DeepFloyd IF's own default is 250.",
    )
    recipe: Recipe = Recipe()
    sampler: Sampler = Field(default="ddpm", description="Its sampler.")
    steps: int = Field(
        default=50, ge=1, le=MAX_SAMPLING_STEPS, description="Its sampling steps per image."
    )
    guidance: float = Field(default=4.0, ge=1, le=50, description="Classifier-free guidance scale.")
