"""Faults of a model, read from its scores: what is wrong, in words, and what to change.

Owns the thresholds. All but one are relative to the model's own base and ceiling, so that they hold
for any embedder. Pure functions; does not know how scores are computed or shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from dbray.scores.values import Scores

MIN_RESEMBLANCE = 1 / 3
"""Share of the way from the base's identity to the ceiling that a model must have come."""
MIN_NEAREST = 0.6
"""Share of images nearest to their own subject, as a part of the same share of photographs."""
MAX_COPIES = 0.5
"""Share of images that may nearly repeat a photograph."""
MAX_FORGOTTEN = 0.3
"""Share of the way from the base's PRES to the ceiling that class images may have come."""
MIN_CLASS_DIVERSITY = 0.6
"""Diversity of class images, as a part of the base's."""
MIN_FOLLOWED = 0.6
"""Share of images nearest to their own prompt, as a part of the base's."""
_TINY = 1e-6


class Flag(NamedTuple):
    """A fault of a model."""

    kind: str
    """A key that stays the same between versions."""
    words: str
    evidence: str
    """The figures that it was read from."""
    fix: str
    """The change of the recipe to try."""

    @property
    def advice(self) -> str:
        """The figures, and what to try."""
        return f"{self.evidence}. To try: {self.fix}"

    @property
    def text(self) -> str:
        """All of it, in one line."""
        return f"{self.words}: {self.advice}"


def flags_of(scores: Scores) -> tuple[Flag, ...]:
    """Return the faults of a model, the worst first; empty if it has none."""
    checks = (_resembles, _is_itself, _is_new, _keeps_its_class, _follows_prompts)
    return tuple(flag for check in checks for flag in check(scores))


def _way(value: float, start: float, end: float) -> float:
    """Return how much of the way from `start` to `end` a value has come; 0 if there is no way."""
    return (value - start) / (end - start) if end - start > _TINY else 0.0


def _resembles(scores: Scores) -> Iterator[Flag]:
    start, end = scores.base_identity, scores.ceiling
    way = _way(scores.identity, start, end)
    if end - start > _TINY and way < MIN_RESEMBLANCE:
        yield Flag(
            "unlike",
            "does not resemble its subject",
            f"identity {scores.identity:.3f} is {max(way, 0):.0%} of the way from the base's "
            f"{start:.3f} to the ceiling {end:.3f}",
            "check its photographs; then double recipe.steps or recipe.learning_rate",
        )


def _is_itself(scores: Scores) -> Iterator[Flag]:
    ceiling = 1.0 if scores.ceiling_nearest is None else scores.ceiling_nearest
    if scores.num_lookalikes and scores.nearest < MIN_NEAREST * ceiling:
        yield Flag(
            "confused",
            "is taken for another subject",
            f"{scores.nearest:.0%} of its images are nearest to it among "
            f"{scores.num_lookalikes + 1} subjects of its class noun; of the photographs "
            f"{ceiling:.0%}",
            "check that its photographs are its own; add photographs, or raise recipe.steps",
        )


def _is_new(scores: Scores) -> Iterator[Flag]:
    if scores.copies > MAX_COPIES:
        yield Flag(
            "copies",
            "copies its photographs",
            f"{scores.copies:.0%} of its images are twice as close to a photograph as any two "
            "photographs are to each other",
            "halve recipe.steps or recipe.learning_rate, or add photographs that differ more",
        )


def _keeps_its_class(scores: Scores) -> Iterator[Flag]:
    start, end = scores.base_preservation, scores.ceiling
    way = _way(scores.preservation, start, end)
    after, before = scores.class_diversity, scores.base_class_diversity
    is_alike = None not in (after, before) and (after or 0) < MIN_CLASS_DIVERSITY * (before or 0)
    if way > MAX_FORGOTTEN or is_alike:
        spread = f"; their diversity {after:.3f}, the base's {before:.3f}" if is_alike else ""
        yield Flag(
            "forgotten",
            "has forgotten its class",
            f"images of the class resemble the subject {scores.preservation:.3f}, the base's "
            f"{start:.3f}{spread}",
            "raise recipe.prior_weight (1 is the paper's) or prior.count, or halve recipe.steps",
        )


def _follows_prompts(scores: Scores) -> Iterator[Flag]:
    if scores.followed is None or scores.base_followed is None:
        return
    if scores.followed < MIN_FOLLOWED * scores.base_followed:
        yield Flag(
            "ignores",
            "ignores prompts",
            f"{scores.followed:.0%} of its images are nearest to their own prompt among those "
            f"asked for; of the base's {scores.base_followed:.0%}",
            "halve recipe.steps or recipe.learning_rate",
        )
