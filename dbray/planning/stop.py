"""What measures fidelity where a recipe stops early: the embedder, and how renders are sampled.

All of it determines the weights, so it is part of the fingerprint. Needs neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from dbray.bases import Base, defaults
from dbray.errors import Problem
from dbray.scores import embedders
from dbray.scores.embedders import Embedder
from dbray.spec.job import Job
from dbray.spec.sections import Previews, Sampler


@dataclass(frozen=True)
class StopMeasure:
    """The embedder, and the sampler and guidance of renders, which are the base's."""

    embedder: Embedder
    sampler: Sampler
    guidance: float

    def identity(self) -> Any:
        """Return what of it belongs in a fingerprint."""
        return {
            "embedder": self.embedder.digest,
            "sampler": self.sampler,
            "guidance": self.guidance,
        }


def stop_measure_of(job: Job, base: Base) -> StopMeasure | None:
    """Return what measures fidelity; None if the recipe does not stop early. Raises BaseError."""
    scoring = job.scoring
    if job.recipe.stop is None or scoring.embedder is None:
        return None
    samplers = base.family.samplers
    return StopMeasure(
        embedders.resolve(scoring.embedder, scoring.embedder_revision),
        # The only one that is good with few steps.
        "dpm++" if "dpm++" in samplers else samplers[0],
        # Not the job's: previews must not decide weights.
        defaults.fill(base, Previews()).section.guidance,
    )


def check_stop(job: Job, where: Callable[[str], str]) -> Iterator[Problem]:
    """Find why the recipe cannot stop early."""
    recipe, place = job.recipe, where("recipe")
    if recipe.stop is None:
        return
    if job.scoring.embedder is None:
        what = "recipe.stop compares renders with photographs, and the job has no embedder"
        fix = "add 'scoring: {embedder: ...}', or leave stop out"
        yield Problem("error", place, what, fix)
    if job.resources.zero_stage:
        what = "recipe.stop renders with the weights in training, which ZeRO divides among GPUs"
        yield Problem("error", place, what, "set zero_stage to 0, or leave stop out")
    if recipe.stop.every >= recipe.steps:
        what = f"recipe.stop measures every {recipe.stop.every} steps, and there are {recipe.steps}"
        yield Problem("warning", place, what, "lower stop.every: training never stops early")
