"""The jobs of an ablation: one for each variant and seed, in one storage, one after the other.

Owns their ids, seeds and storage, and what of the job's prompts the sheet shows. A model that two
variants have in common, of this ablation or another in the same storage, is trained once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dbray.ablate.variants import Variant
from dbray.planning.checked import Ready
from dbray.records.results import Outcome
from dbray.run.job import JobResult, run_job
from dbray.run.options import RunOptions
from dbray.run.watch import Watch
from dbray.spec.canon import slug
from dbray.spec.job import Job

_JOB_CHARACTERS = 24
"""Of the job's own id in the ids of its trials, which have at most 63."""


@dataclass(frozen=True)
class Trial:
    """One variant of the subjects with one seed: a job."""

    variant: Variant
    seed: int
    job: Job


@dataclass(frozen=True)
class Trained:
    """What a trial published."""

    trial: Trial
    outcomes: tuple[Outcome, ...]

    @property
    def models(self) -> list[str]:
        """Names of its models, 'id@revision'."""
        return [f"{one.id}@{one.revision}" for one in self.outcomes if one.is_published]


class Interrupted(KeyboardInterrupt):
    """A trial was interrupted; the same command continues it."""


def trials_of(
    name: str, ready: Ready, variants: Sequence[Variant], seeds: Sequence[int], storage: str
) -> list[Trial]:
    """Make the trials of the variants that train."""
    return [
        Trial(variant, seed, _job(name, ready.job, variant.name, variant.job, seed, storage))
        for variant in variants
        if variant.job is not None
        for seed in seeds
    ]


def _job(name: str, own: Job, variant: str, job: Job, seed: int, storage: str) -> Job:
    # The prompts decide which words no identifier may be, so they are equal in all trials.
    prompts = (job.scoring.prompts[0], job.scoring.class_prompts[0])
    return job.model_copy(update={
        "id": slug(f"{own.id[:_JOB_CHARACTERS]}-{name}-{slug(variant)}-seed{seed}"),
        "storage": storage,
        "recipe": job.recipe.model_copy(update={"seed": seed}),
        "previews": job.previews.model_copy(update={"prompts": prompts}),
    })  # fmt: skip


def train(trials: Sequence[Trial], options: RunOptions, watch: Watch) -> list[Trained]:
    """Run the trials that are not finished. Raises Interrupted, and what `run_job` does."""
    done, heard = [], _Once(watch)
    for number, trial in enumerate(trials, start=1):
        label = f"{trial.variant.name}, seed {trial.seed}"
        watch.note(f"{label} (job {trial.job.id}, {number} of {len(trials)})")
        result: JobResult = run_job(trial.job, options, heard)
        if result.state == "interrupted":
            raise Interrupted
        done.append(Trained(trial, result.outcomes))
    return done


class _Once:
    """Passes each note on once: the trials warn of the same subjects."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._noted: set[str] = set()
        self.progress, self.ended = watch.progress, watch.ended

    def note(self, text: str) -> None:
        """See Watch."""
        if text not in self._noted:
            self._noted.add(text)
            self._watch.note(text)
