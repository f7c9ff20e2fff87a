"""Measures how strong a base's prior for words is, on the pool of sampling actors.

Strong words are names, brands and abbreviations that no list holds: an identifier made of them
competes with what the base already draws for it.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from dbray.bases import Base
from dbray.bases.effects import NOUNS, effects_of
from dbray.records.strengths import Strengths
from dbray.sampling.pool import SamplingActor, SamplingPool, sample
from dbray.spec.recipe import Recipe

_WORDS_PER_TASK = 16
_NUM_RARE = 16


class EffectActor(SamplingActor):
    """Measures the effects of a few words at a time."""

    def make(self, task: dict[str, Any]) -> dict[str, bytes]:
        """Return the effects as JSON. They depend on the base alone, not on a job's recipe."""
        recommended = self.base.fill(Recipe())
        backbone = self.backbone(Recipe(resolution=recommended.resolution))
        return {"effects": json.dumps(effects_of(backbone, task["words"])).encode()}


def measure_strengths(
    base: Base,
    words: Sequence[str],
    rare: Sequence[str],
    known: Strengths | None,
    pool: SamplingPool | None = None,
) -> Strengths:
    """Measure words, and add them to what is known.

    Args:
        base: whose prior is measured.
        words: not measured yet.
        rare: all tokens that may name a subject; some of them say what is typical.
        known: what was measured earlier, on any machine; its scale stays.
        pool: the sampling actors.

    Raises:
        BaseError: the base cannot be loaded.
        LaneLost: the actors keep dying.
    """
    pool = pool or SamplingPool()
    scale = known or _scale(base, rare, pool)
    return scale.measured(_effects(base, scale.unknown(words), pool))


def _scale(base: Base, rare: Sequence[str], pool: SamplingPool) -> Strengths:
    """Measure what is typical of rare tokens and of nouns."""
    typical = list(rare[:: max(1, len(rare) // _NUM_RARE)])[:_NUM_RARE]
    found = _effects(base, [*NOUNS, *typical], pool)
    scale = Strengths(
        rare_effect=statistics.median(found[word] for word in typical),
        noun_effect=statistics.median(found[word] for word in NOUNS),
    )
    return scale.measured({word: found[word] for word in typical})


def _effects(base: Base, words: Sequence[str], pool: SamplingPool) -> dict[str, float]:
    tasks = [
        {"words": list(words[start : start + _WORDS_PER_TASK])}
        for start in range(0, len(words), _WORDS_PER_TASK)
    ]
    effects: dict[str, float] = {}
    with closing(sample(EffectActor, (base, pool.threads), tasks, pool)) as results:
        for result in results:
            effects |= json.loads(result.checked()["effects"])
    return effects
