"""The scores of one model as values, and the columns that people see of them.

Owns names, meanings and which direction is better. Does not know how scores are computed (see
dbray.scores.figures) or stored (see dbray.records.scores). Loads neither torch nor Ray.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field


class Scores(BaseModel):
    """The figures of a model; cosines are from -1 to 1, shares from 0 to 1.

    Fields with `base_` are for the untouched base, with the same prompts and seeds. A field is None
    where it was not measured: without a CLIP, with a single prompt, without unrelated prompts,
    without a perceptual distance, or by an earlier dbray.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    identity: float = Field(description="Mean cosine of generated images and photographs.")
    base_identity: float = Field(description="The same for the base, which never saw the subject.")
    ceiling: float = Field(description="Mean cosine of the subject's photographs to each other.")
    clip_identity: float | None = Field(
        None, description="CLIP-I: as identity, by the image embeddings of the CLIP."
    )
    base_clip_identity: float | None = Field(None, description="The same for the base.")
    clip_ceiling: float | None = Field(None, description="As ceiling, by the CLIP.")
    nearest: float = Field(description="Share of images whose nearest subject is the right one.")
    ceiling_nearest: float | None = Field(
        None,
        description="Share of photographs whose nearest subject, without themselves, is right.",
    )
    precision: float = Field(description="Mean average precision among look-alikes.")
    num_lookalikes: int = Field(description="Other subjects of the class noun to compare with.")
    prompt: float | None = Field(description="Mean cosine of images and their prompts (CLIP-T).")
    base_prompt: float | None = Field(description="The same for the base.")
    followed: float | None = Field(
        None, description="Share of images whose own prompt is the nearest of those asked for."
    )
    base_followed: float | None = Field(None, description="The same for the base.")
    drift: float = Field(description="1 - mean cosine to the base's images of class prompts.")
    unrelated_drift: float | None = Field(
        None, description="The same for prompts that name neither the subject nor its class."
    )
    preservation: float = Field(description="PRES: mean cosine of class images and photographs.")
    base_preservation: float = Field(description="The same for the base.")
    diversity: float = Field(
        description="DIV: mean 1 - cosine of images of the subject for one prompt."
    )
    base_diversity: float = Field(description="The same for the base.")
    class_diversity: float | None = Field(None, description="As diversity, of class images.")
    base_class_diversity: float | None = Field(None, description="The same for the base.")
    perceptual_diversity: float | None = Field(
        None, description="DIV by ST-LPIPS: its mean distance of images for one prompt."
    )
    base_perceptual_diversity: float | None = Field(None, description="The same for the base.")
    copies: float = Field(description="Share of images that nearly repeat a photograph.")


class Column(NamedTuple):
    """A score that people see in tables and sort by."""

    field: str
    heading: str
    is_high_good: bool
    meaning: str
    base: str | None = None
    """Field with the base's figure."""
    ceiling: str | None = None
    """Field with the best possible figure."""


ScoreName = Literal["identity", "margin", "prompt", "drift", "preservation", "diversity", "copies"]
"""What `--sort` and `sort=` take."""

COLUMNS: dict[ScoreName, Column] = {
    "identity": Column(
        "identity", "identity", True,
        "resemblance to the photographs; the ceiling is theirs to each other",
        "base_identity", "ceiling",
    ),
    "margin": Column(
        "nearest", "margin", True,
        "share of images that are nearest to their own subject among its look-alikes",
        ceiling="ceiling_nearest",
    ),
    "prompt": Column(
        "prompt", "prompt", True, "agreement with the prompt (CLIP-T)", "base_prompt"
    ),
    "drift": Column(
        "drift", "drift", False, "how far images of the class have moved from the base's"
    ),
    "preservation": Column(
        "preservation", "PRES", False, "resemblance of class images to the subject",
        "base_preservation",
    ),
    "diversity": Column(
        "diversity", "DIV", True, "difference of images of one prompt", "base_diversity"
    ),
    "copies": Column("copies", "copies", False, "share of images that nearly repeat a photograph"),
}  # fmt: skip


def value_of(scores: Scores | None, column: ScoreName) -> float | None:
    """Return the figure of a column; None if it was not measured."""
    return None if scores is None else getattr(scores, COLUMNS[column].field)


def rank_of(scores: Scores | None, column: ScoreName) -> tuple[bool, float]:
    """Return the key that sorts the best first and models without the figure last."""
    value = value_of(scores, column)
    if value is None:
        return True, 0.0
    return False, -value if COLUMNS[column].is_high_good else value


def references(scores: Scores, column: Column) -> str:
    """Write what a figure is compared with: the base's, and the best possible."""
    pairs = (("base", column.base), ("ceiling", column.ceiling))
    values = [(name, getattr(scores, field)) for name, field in pairs if field]
    return ", ".join(f"{name} {shown(value)}" for name, value in values if value is not None)


def shown(value: float | None) -> str:
    """Write a score for people; "-" if it was not measured."""
    return "-" if value is None else f"{value:.3f}"
