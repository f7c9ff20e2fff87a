"""The tally of a run: how subjects ended, how long phases took, and the summary.

Counts what it is given. Does not know storage, Ray or the readers of the summary.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from dbray.errors import SubjectError
from dbray.lanes.leases import Snapshot
from dbray.planning.checked import InvalidSubject
from dbray.planning.plan import Plan, PlannedSubject
from dbray.records.results import (
    Failure,
    InFlight,
    Outcome,
    PhaseProgress,
    Rates,
    Status,
    Summary,
    causes,
    counts,
)
from dbray.sampling.priors import PriorReport
from dbray.spec.canon import utc_now
from dbray.spec.subject import Subject

RETRY_IN_PYTHON = "run_job(job, RunOptions(retry_failed=True))"

State = Literal["running", "finished", "stopped", "interrupted", "broken"]


@dataclass
class _Phase:
    """The phase that is running."""

    name: str
    started: float
    done: int = 0
    total: int = 0

    @property
    def progress(self) -> PhaseProgress:
        seconds = round(time.monotonic() - self.started, 2)
        return PhaseProgress(name=self.name, done=self.done, total=self.total, seconds=seconds)


@dataclass
class Tally:
    """The counts of a run so far."""

    plan: Plan
    retry_command: str
    rates: Rates | None = None
    """Rates of the previous run, until this run has its own."""
    lanes: int = 0
    priors: PriorReport = field(default_factory=PriorReport)
    snapshot: Snapshot | None = None
    outcomes: dict[str, Outcome] = field(init=False)
    failed: set[str] = field(default_factory=set)
    """Ids of the subjects that failed in this run, without those of earlier runs."""
    _num_before: int = field(init=False)
    _phase: _Phase | None = None
    _phase_seconds: dict[str, float] = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)
    _started_at: str = field(default_factory=utc_now)

    def __post_init__(self) -> None:
        kept = {one.subject.id: _without_attempt(one, "kept") for one in self.plan.kept}
        invalid = {one.id: _invalid(one) for one in self.plan.invalid}
        self.outcomes = kept | dict(self.plan.failed) | invalid
        self._num_before = len(self.outcomes)

    @property
    def seconds(self) -> float:
        """How long the run has taken so far."""
        return time.monotonic() - self._started

    @property
    def num_ended(self) -> int:
        """Subjects that this run has published, or that have failed in it for good."""
        return len(self.outcomes) - self._num_before

    @property
    def remaining(self) -> list[PlannedSubject]:
        """The subjects to train that have not ended."""
        return [one for one in self.plan.to_train if one.subject.id not in self.outcomes]

    @property
    def num_pending(self) -> int | None:
        """Subjects that no lane has yet; None before the first lane starts."""
        if self.snapshot is None:
            return None
        return len(self.plan.to_train) - self.num_ended - len(self.snapshot.in_flight)

    def add(self, outcome: Outcome) -> None:
        """Count a subject that ended."""
        self.outcomes[outcome.id] = outcome
        (self.failed.add if outcome.error else self.failed.discard)(outcome.id)

    def mark_unfinished(self) -> None:
        """Give every subject that has not ended the outcome 'unfinished'."""
        for planned in self.plan.to_train:
            unfinished = _without_attempt(planned, "unfinished")
            self.outcomes.setdefault(planned.subject.id, unfinished)

    @property
    def resumable(self) -> set[str]:
        """Revisions that this run or the next may continue from a checkpoint."""
        ended = {
            one.id
            for one in self.outcomes.values()
            if one.is_published or (one.error and not one.error.retryable)
        }
        return {one.revision for one in self.plan.to_train if one.subject.id not in ended}

    @property
    def failed_subjects(self) -> list[Subject]:
        """The subjects that failed, in this run or before, and those with errors."""
        failed = {one.id for one in self.outcomes.values() if one.status == "failed"}
        planned = [one.subject for one in self.plan.subjects if one.subject.id in failed]
        return planned + [one.subject for one in self.plan.invalid if one.subject is not None]

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase; one that is entered again continues."""
        before = self._phase_seconds.get(name, 0.0)
        self._phase = phase = _Phase(name, time.monotonic() - before)
        try:
            yield
        finally:
            self._phase = None
            self._phase_seconds[name] = time.monotonic() - phase.started

    def progress(self, done: int, total: int) -> str:
        """Note the progress of the running phase; returns the phase's name."""
        assert self._phase is not None
        self._phase.done, self._phase.total = done, total
        return self._phase.name

    def summary(self, state: State, error: str | None = None) -> Summary:
        """Summarise the run at this moment."""
        outcomes = tuple(self.outcomes.values())
        published = [outcome for outcome in outcomes if outcome.status == "published"]
        wall = self.seconds
        phase, snapshot = self._phase, self.snapshot if state == "running" else None
        return Summary(
            job_id=self.plan.job.id,
            state=state,
            error=error,
            counts=counts(outcomes),
            num_subjects=len(self.plan.subjects) + len(self.plan.invalid),
            started_at=self._started_at,
            updated_at=utc_now(),
            wall_seconds=round(wall, 2),
            phase_seconds={name: round(taken, 2) for name, taken in self._phase_seconds.items()},
            subjects_per_hour=round(len(published) / wall * 3600, 1),
            prior_images=self.priors.num_images,
            prior_images_per_second=_images_per_second(self.priors),
            prior_sets=len(self.priors.digests),
            train_steps=sum(outcome.steps for outcome in published),
            lanes=self.lanes,
            phase=phase and phase.progress,
            in_flight=_in_flight(snapshot) if snapshot else {},
            pending=self.num_pending if state == "running" else None,
            failures=causes(outcomes),
            retry_command=self.retry_command,
            base_digest=self.plan.base.digest,
            rates=_rates(published, self.priors) or self.rates,
        )


def _without_attempt(planned: PlannedSubject, status: Status) -> Outcome:
    """Make the outcome of a subject that this run did not train."""
    return Outcome(
        id=planned.subject.id,
        class_noun=planned.subject.class_noun,
        status=status,
        revision=planned.revision,
        identifier=planned.identifier,
    )


def _invalid(one: InvalidSubject) -> Outcome:
    noun = one.subject.class_noun if one.subject else ""
    error = Failure.of(SubjectError(one.reason))
    return Outcome(id=one.id, class_noun=noun, status="failed", error=error)


def _in_flight(snapshot: Snapshot) -> dict[str, InFlight]:
    by_lane = sorted(snapshot.in_flight.items(), key=lambda one: (one[1][0], one[0]))
    return {
        subject_id: InFlight(id=subject_id, step=step, lane=lane)
        for subject_id, (lane, step) in by_lane
    }


_BY_STEP = ("teacher", "train", "fidelity")
"""Phases of a subject that take as long as it has steps."""


def _rates(published: Sequence[Outcome], priors: PriorReport) -> Rates | None:
    """The rates for the next plan's estimate; None if nothing was trained."""
    steps = sum(outcome.steps for outcome in published)
    if not steps:
        return None
    train = sum(outcome.timings.get(phase, 0.0) for outcome in published for phase in _BY_STEP)
    other = sum(sum(outcome.timings.values()) for outcome in published) - train
    return Rates(
        step_seconds=round(train / steps, 6),
        overhead_seconds=round(other / len(published), 4),
        prior_images_per_second=_images_per_second(priors),
    )


def _images_per_second(priors: PriorReport) -> float | None:
    """Class images per second; None if the run made none."""
    return round(priors.images_per_second, 2) if priors.num_images else None
