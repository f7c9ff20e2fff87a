"""How strong a base's prior for single words is, as measured: `identifiers/<base digest>.json`.

What is written there once stays, so that a job that is continued, or another job in the same
storage, chooses the same identifiers, whatever machine measures. Knows nothing of the measurement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field, ValidationError

from dbray.errors import FileMissing
from dbray.spec.base import Spec
from dbray.storage.store import Store

STRONG = 0.25
"""From this strength on, a word names no subject; rare tokens of the miniature have up to 0.01."""
_LEAST_CONTRAST = 1.1
"""A base that hardly tells nouns from rare tokens, as a random one, has no prior to measure."""


class Strengths(Spec):
    """Strengths of words: 0 is that of a typical rare token, 1 that of a typical noun."""

    rare_effect: float = Field(description="Median effect of other rare tokens.")
    noun_effect: float = Field(description="Median effect of common nouns.")
    words: dict[str, float] = Field(default_factory=dict, description="Strength by word.")

    @property
    def strong(self) -> frozenset[str]:
        """The words that must name no subject, in lower case."""
        return frozenset(
            word.lower() for word, strength in self.words.items() if strength >= STRONG
        )

    def unknown(self, words: Sequence[str]) -> list[str]:
        """The words that are not measured yet, each once."""
        return [word for word in dict.fromkeys(words) if word not in self.words]

    def of(self, identifier: str) -> float | None:
        """Strength of an identifier: that of its strongest word; None if one is not measured."""
        words = identifier.split()
        if self.unknown(words):
            return None
        return max(self.words[word] for word in words)

    def measured(self, effects: Mapping[str, float]) -> Strengths:
        """Add words by their effects."""
        added = {word: self._strength(effect) for word, effect in effects.items()}
        return self.model_copy(update={"words": {**added, **self.words}})

    def _strength(self, effect: float) -> float:
        # Rounded, so that the arithmetic of another machine seldom changes it.
        if self.noun_effect < _LEAST_CONTRAST * self.rare_effect:
            return 0.0
        contrast = self.noun_effect - self.rare_effect
        return round(max(0.0, (effect - self.rare_effect) / contrast), 2)


def read_strengths(store: Store, base_digest: str) -> Strengths | None:
    """Read what is known of a base; None if nothing is, or the file is damaged."""
    try:
        return Strengths.model_validate_json(store.read_bytes(_path(base_digest)))
    except (FileMissing, ValidationError):
        return None


def write_strengths(store: Store, base_digest: str, strengths: Strengths) -> None:
    """Write what is known of a base. Raises StoreError."""
    store.write_json(_path(base_digest), strengths.model_dump(mode="json"))


def _path(base_digest: str) -> str:
    return f"identifiers/{base_digest}.json"
