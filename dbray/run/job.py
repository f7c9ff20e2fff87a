"""Carry out a Plan: class images, lanes, previews, report. Resume, failures, interruption.

Owns the order of things and the driver's loop. What is published is never lost: a run that ends in
any way is continued by running the same job again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal, Protocol

import dbray
from dbray import metrics
from dbray.cluster import connected, hardware
from dbray.errors import DbrayError, SpecError, TooManyFailures
from dbray.lanes.checkpoint import forget_checkpoints
from dbray.lanes.group import open_lanes
from dbray.lanes.leases import Snapshot
from dbray.planning.checks import Ready, check_job
from dbray.planning.plan import Plan, PlannedSubject, make_plan, num_lanes, too_small
from dbray.records import previews as previews_layout
from dbray.records.models import Registry
from dbray.records.results import (
    InFlight,
    Outcome,
    PhaseProgress,
    Rates,
    Status,
    Summary,
    causes,
    counts,
    read_summary,
)
from dbray.report import build_report
from dbray.run.journal import Journal
from dbray.sampling.pool import SamplingPool
from dbray.sampling.previews import PreviewRequest, describe, make_previews
from dbray.sampling.priors import PriorReport, make_priors
from dbray.spec.canon import utc_now
from dbray.spec.job import Job
from dbray.storage.store import Store

logger = logging.getLogger(__name__)

_HERALD_SECONDS = 10.0
_LOOKUPS_AT_ONCE = 16
_RETRY_IN_PYTHON = "run_job(job, RunOptions(retry_failed=True))"

State = Literal["running", "finished", "stopped", "interrupted", "broken"]


@dataclass(frozen=True)
class RunOptions:
    """How to run a job, beside what the job says."""

    retry_failed: bool = False
    """Also try again subjects whose error would only repeat itself."""
    max_failures: int | None = None
    """Stop when more subjects than this have failed."""
    address: str | None = None
    """Ray cluster to use; None: one of this process's own."""
    command: str | None = None
    """How the user ran this job, as a shell takes it, for the hints in the report; None: from
    Python."""


class Watch(Protocol):
    """Is told of progress; the command line draws it."""

    def note(self, text: str) -> None:
        """Something worth a line happened."""
        ...

    def progress(self, phase: str, done: int, total: int, detail: str = "") -> None:
        """Phase 'class images', 'training' or 'previews' is `done` of `total` far."""
        ...

    def ended(self, outcome: Outcome) -> None:
        """A subject ended."""
        ...


class Silence:
    """A Watch that says nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def progress(self, phase: str, done: int, total: int, detail: str = "") -> None:
        """Say nothing."""

    def ended(self, outcome: Outcome) -> None:
        """Say nothing."""


@dataclass(frozen=True)
class JobResult:
    """What became of a job."""

    job_id: str
    state: State
    outcomes: tuple[Outcome, ...]
    summary: Summary
    report: str
    """Path or URI of report.html."""

    @property
    def exit_code(self) -> int:
        """0: all published. 3: some were not. 4: stopped at max_failures. 130: interrupted."""
        if self.state == "interrupted":
            return 130
        if self.state == "stopped":
            return TooManyFailures.exit_code
        counted = self.summary.counts
        return 3 if counted["failed"] or counted["unfinished"] else 0


def run_job(
    job: Job | Ready, options: RunOptions | None = None, watch: Watch | None = None
) -> JobResult:
    """Check, plan and carry out a job; running it again continues it.

    Raises:
        SpecError: all that is wrong with the job, its base and its subjects; nothing ran and no Ray
            was started.
        JobBusy: another run holds this job.
        StoreError: storage cannot be written; what was published stays.
    """
    ready = job if isinstance(job, Ready) else check_job(job).ready()
    store = Store(ready.job.storage)
    journal = Journal(store, ready.job.id)
    with journal.hold():
        options, watch = options or RunOptions(), watch or Silence()
        plan = make_plan(ready, store, options.retry_failed)
        for warning in plan.warnings:
            watch.note(str(warning))
        return _Run(plan, journal, options, watch).carry_out()


@dataclass
class _Phase:
    """The phase at work."""

    name: str
    started: float
    done: int = 0
    total: int = 0

    @property
    def progress(self) -> PhaseProgress:
        seconds = round(time.monotonic() - self.started, 2)
        return PhaseProgress(name=self.name, done=self.done, total=self.total, seconds=seconds)


@dataclass
class _Run:
    """One run of a job: the state of the driver."""

    plan: Plan
    journal: Journal
    options: RunOptions
    watch: Watch
    started: float = field(default_factory=time.monotonic)
    started_at: str = field(default_factory=utc_now)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    phase_seconds: dict[str, float] = field(default_factory=dict)
    priors: PriorReport | None = None
    lanes: int = 0
    failed: set[str] = field(default_factory=set)
    """Ids of the subjects that failed in this run, not in those before."""
    phase: _Phase | None = None
    snapshot: Snapshot | None = None
    rates: Rates | None = None
    """What the run before told."""

    def carry_out(self) -> JobResult:
        """Do what the plan says; whatever happens, write down how it ended."""
        self._carry_over()
        self._forget_checkpoints()
        # Left last: Ray may take this process along as it goes, and how the run ended is written.
        with ExitStack() as cluster:
            try:
                self.journal.begin(self.plan, dbray.__version__)
                self._write("running")
                with self._heralded():
                    self._work(cluster)
            except TooManyFailures as exc:
                self.watch.note(str(exc))
                return self._end("stopped", str(exc))
            except KeyboardInterrupt:
                self.watch.note("interrupted; run the same command to continue")
                return self._end("interrupted")
            except BaseException as exc:
                state: State = "broken" if isinstance(exc, Exception) else "interrupted"
                with suppress(DbrayError):  # the error that is told first is the one to tell
                    self._end(state, _told(exc))
                raise
            return self._end("finished")

    def _end(self, state: State, error: str | None = None) -> JobResult:
        """Write down how it ended."""
        self._mark_unfinished()
        summary = self._write(state, error)
        report = build_report(self.journal.store, self.plan.job.id)
        return JobResult(
            self.plan.job.id,
            state,
            tuple(self.outcomes.values()),
            summary,
            self.journal.store.location(report),
        )

    def _carry_over(self) -> None:
        """Outcomes that stand already, and the rates of the run before."""
        summary = read_summary(self.journal.store, self.plan.job.id)
        self.rates = summary and summary.rates
        kept = {one.subject.id: _without_attempt(one, "kept") for one in self.plan.kept}
        self.outcomes = kept | dict(self.plan.failed)

    def _forget_checkpoints(self) -> None:
        """Of all but the subjects that this run or the next may continue: they are large."""
        over = {
            one.id
            for one in self.outcomes.values()
            if one.is_published or (one.error and not one.error.retryable)
        }
        keep = {one.revision for one in self.plan.to_train if one.subject.id not in over}
        forget_checkpoints(self.journal.store, self.plan.job.id, keep)

    def _work(self, cluster: ExitStack) -> None:
        registry = Registry(self.journal.store)
        requests = [] if self.plan.to_train else self._without_previews(registry)
        if self.plan.to_train or requests:
            cluster.enter_context(connected(self.options.address, self.watch.note))
            self._count_lanes()
            self._make_priors()
            self._train()
            self._make_previews(requests or self._without_previews(registry))

    def _count_lanes(self) -> None:
        """Say how many lanes the cluster holds. Raises SpecError where it is not a single one."""
        if self.plan.to_train:
            held = hardware()
            self.lanes = num_lanes(self.plan, held)
            if not self.lanes:
                raise SpecError([too_small(self.plan.job.resources, held)])

    @contextmanager
    def _heralded(self) -> Iterator[None]:
        """Tell those who look from outside that the run lives, whatever it waits for."""
        over = threading.Event()
        herald = threading.Thread(target=self._herald, args=(over,), name="herald", daemon=True)
        herald.start()
        try:
            yield
        finally:
            over.set()
            herald.join()

    def _herald(self, over: threading.Event) -> None:
        while not over.wait(_HERALD_SECONDS):
            try:
                self._write_if_due()
            except DbrayError as exc:  # what cannot be written is the work's own to say
                logger.warning("journal not written error=%s", exc)

    @contextmanager
    def _at_work(self, name: str) -> Iterator[None]:
        """Time a phase."""
        self.phase = phase = _Phase(name, time.monotonic())
        try:
            yield
        finally:
            self.phase = None
            self.phase_seconds[name] = time.monotonic() - phase.started

    def _tell(self, done: int, total: int, detail: str = "") -> None:
        """The phase at work is `done` of `total` far."""
        assert self.phase is not None
        self.phase.done, self.phase.total = done, total
        self.watch.progress(self.phase.name, done, total, detail)

    def _make_priors(self) -> None:
        if not self.plan.missing_priors:
            return
        with self._at_work("class images"):
            self.priors = make_priors(
                self.journal.store,
                self.plan.base,
                self.plan.missing_priors,
                self._pool(),
                self._tell,
            )

    def _pool(self) -> SamplingPool:
        resources = self.plan.job.resources
        return SamplingPool(resources.prior_actors, resources.threads_per_worker, resources.device)

    def _train(self) -> None:
        if not self.plan.to_train:
            return
        job, base, folder = self.plan.job, self.plan.base, self.journal.lanes_folder
        with (
            self._at_work("training"),
            open_lanes(job, base, self.plan.to_train, self.lanes, folder, self.watch.note) as lanes,
        ):
            for snapshot in lanes.snapshots():
                self._take(snapshot)
        self.journal.forget_lanes()
        self._forget_checkpoints()

    def _take(self, snapshot: Snapshot) -> None:
        """Note progress. Raises TooManyFailures."""
        for outcome in snapshot.outcomes:
            self.outcomes[outcome.id] = outcome
            self.watch.ended(outcome)
            metrics.subjects().inc(tags={"status": outcome.status})
            (self.failed.add if outcome.error else self.failed.discard)(outcome.id)
        self._show(snapshot)
        self._write_if_due()
        limit = self.options.max_failures
        if limit is not None and len(self.failed) > limit:
            raise TooManyFailures(
                f"stopped: {len(self.failed)} subjects failed, more than --max-failures {limit}; "
                "fix the cause and run again with --retry-failed"
            )

    def _show(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        metrics.pending_subjects().set(snapshot.num_pending)
        metrics.lanes().set(len(snapshot.in_flight))
        at = (snapshot.in_flight[lane] for lane in sorted(snapshot.in_flight))
        steps = self.plan.job.recipe.steps
        detail = ", ".join(f"{subject_id} {step}/{steps}" for subject_id, step in at)
        self._tell(snapshot.num_ended, snapshot.num_subjects, detail)

    def _without_previews(self, registry: Registry) -> list[PreviewRequest]:
        """Published subjects of this job that have no previews, or such as were asked otherwise."""
        previews = self.plan.job.previews
        if not previews.prompts:
            return []

        def request(planned: PlannedSubject) -> PreviewRequest | None:
            subject, revision = planned.subject, planned.revision
            try:
                if not registry.has(subject.id, revision):
                    return None
                asked = describe(previews, subject.class_noun, planned.identifier)
                model = f"{subject.id}@{revision}"
                if previews_layout.annex(registry.store, model).has(asked):
                    return None
                record = registry.find(model)
            except DbrayError as exc:  # one bad subject never stops a job
                self.watch.note(f"no previews of {subject.id}: {exc}")
                return None
            # Of 100,000 subjects, loss curves alone would fill gigabytes.
            return PreviewRequest(record.model_copy(update={"loss": ()}), subject.images)

        with ThreadPoolExecutor(_LOOKUPS_AT_ONCE) as threads:
            found = threads.map(request, self.plan.subjects)
            return [one for one in found if one is not None]

    def _make_previews(self, requests: Sequence[PreviewRequest]) -> None:
        if not requests:
            return
        with self._at_work("previews"):
            broken = make_previews(
                self.journal.store,
                self.plan.base,
                requests,
                self.plan.job.previews,
                self._pool(),
                self._tell,
            )
        for model_id, error in broken:
            self.watch.note(f"no previews of {model_id}: {error}")

    def _mark_unfinished(self) -> None:
        for planned in self.plan.to_train:
            unfinished = _without_attempt(planned, "unfinished")
            self.outcomes.setdefault(planned.subject.id, unfinished)

    def _write_if_due(self) -> None:
        if self.journal.is_due:
            self._write("running")

    def _write(self, state: State, error: str | None = None) -> Summary:
        """Write the journal; returns the summary."""
        outcomes = tuple(self.outcomes.values())
        summary = self._summary(state, error, outcomes)
        if state != "running":
            failed = {outcome.id for outcome in outcomes if outcome.status == "failed"}
            self.journal.write_failed(
                [one.subject for one in self.plan.subjects if one.subject.id in failed]
            )
        self.journal.write(outcomes, summary)
        return summary

    def _summary(self, state: State, error: str | None, outcomes: Sequence[Outcome]) -> Summary:
        wall = time.monotonic() - self.started
        published = [outcome for outcome in outcomes if outcome.status == "published"]
        command = self.options.command
        phase, at_work = self.phase, self.snapshot if state == "running" else None
        return Summary(
            job_id=self.plan.job.id,
            state=state,
            error=error,
            counts=counts(outcomes),
            num_subjects=len(self.plan.subjects),
            started_at=self.started_at,
            updated_at=utc_now(),
            wall_seconds=round(wall, 2),
            phase_seconds={name: round(taken, 2) for name, taken in self.phase_seconds.items()},
            subjects_per_hour=round(len(published) / wall * 3600, 1),
            prior_images=self.priors.num_images if self.priors else 0,
            prior_images_per_second=_rate(self.priors),
            prior_sets=len(self.priors.digests) if self.priors else 0,
            train_steps=sum(outcome.steps for outcome in published),
            lanes=self.lanes,
            phase=phase and phase.progress,
            in_flight=_in_flight(at_work) if at_work else {},
            pending=at_work.num_pending if at_work else None,
            failures=causes(outcomes),
            retry_command=f"{command} --retry-failed" if command else _RETRY_IN_PYTHON,
            base_digest=self.plan.base.digest,
            rates=_rates(published, self.priors) or self.rates,
        )


def _without_attempt(planned: PlannedSubject, status: Status) -> Outcome:
    """The outcome of a subject that this run did not train."""
    return Outcome(
        id=planned.subject.id,
        class_noun=planned.subject.class_noun,
        status=status,
        revision=planned.revision,
        identifier=planned.identifier,
    )


def _told(exc: BaseException) -> str:
    return str(exc) if isinstance(exc, DbrayError) else f"{type(exc).__name__}: {exc}"


def _in_flight(snapshot: Snapshot) -> dict[str, InFlight]:
    return {
        lane: InFlight(id=subject_id, step=step)
        for lane, (subject_id, step) in sorted(snapshot.in_flight.items())
    }


def _rates(published: Sequence[Outcome], priors: PriorReport | None) -> Rates | None:
    """What the next plan's estimate goes by."""
    steps = sum(outcome.steps for outcome in published)
    if not steps:
        return None
    train = sum(outcome.timings.get("train", 0.0) for outcome in published)
    other = sum(sum(outcome.timings.values()) for outcome in published) - train
    return Rates(
        step_seconds=round(train / steps, 6),
        overhead_seconds=round(other / len(published), 4),
        prior_images_per_second=_rate(priors),
    )


def _rate(priors: PriorReport | None) -> float | None:
    """Class images per second; a job that found them all made tells nothing about it."""
    if priors is None or not priors.num_images:
        return None
    return round(priors.images_per_second, 2)
