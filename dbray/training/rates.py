"""Learning rates: what they are at each step.

Step k counts from 0, W are the recipe's warmup_steps and N its steps. A rate is its start times

    (k + 1) / W                 in the warm-up, k < W,
    1                           after it: constant
    1 - p                       linear
    (1 + cos(pi p)) / 2         cosine, with p = (k - W) / (N - W).

So a run that starts again at step k needs to know k alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dbray.spec.recipe import RateSchedule, Recipe


@dataclass(frozen=True)
class Rate:
    """A learning rate: its start, and how it changes."""

    start: float
    schedule: RateSchedule = "constant"

    def at(self, step: int, recipe: Recipe) -> float:
        """The rate of the step that comes after `step` steps."""
        return self.start * _factor(self.schedule, step, recipe.warmup_steps, recipe.steps)


def _factor(schedule: RateSchedule, step: int, warmup: int, steps: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    passed = (step - warmup) / (steps - warmup)
    return 1 - passed if schedule == "linear" else (1 + math.cos(math.pi * passed)) / 2
