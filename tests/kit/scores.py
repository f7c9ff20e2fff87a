"""Scores of a good model, of which tests plant faults."""

from __future__ import annotations

from typing import Any

from dbray.scores.values import Scores

GOOD = Scores(
    identity=0.70, base_identity=0.30, ceiling=0.80, nearest=0.95, ceiling_nearest=1.0,
    precision=0.9, num_lookalikes=5, prompt=0.30, base_prompt=0.31, followed=0.9,
    base_followed=0.95, drift=0.1, unrelated_drift=0.02, preservation=0.35, base_preservation=0.30,
    diversity=0.3, base_diversity=0.5,
    class_diversity=0.48, base_class_diversity=0.5, copies=0.1,
)  # fmt: skip


def scores(**planted: Any) -> Scores:
    """A good model's scores, with some changed."""
    return GOOD.model_copy(update=planted)
