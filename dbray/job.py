"""Carry out a Plan: class images, lanes, previews, report. Resume, failures, interruption.

Owns the order of things and the driver's loop. What is published is never lost: a run that ends in
any way is continued by running the same job again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import ray

import dbray
from dbray import backbones, manifest, metrics
from dbray.cluster import connected, hardware
from dbray.errors import DbrayError, SpecError, TooManyFailures
from dbray.journal import Journal, counts, failures_by_cause
from dbray.lane import LaneSpec, run_lane
from dbray.leases import LeaseQueue, Outcome, Snapshot
from dbray.plan import Plan, make_plan, num_lanes
from dbray.previews import PreviewRequest, make_previews
from dbray.priors import make_priors
from dbray.registry import Registry
from dbray.report import build_report
from dbray.sampling import SamplingPool
from dbray.spec import Job, utc_now
from dbray.store import Store

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.25
_JOIN_SECONDS = 15.0

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
    """How the user ran this job, for the hints in the report."""


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
    summary: dict[str, Any]
    report: str
    """Path or URI of report.html."""

    @property
    def exit_code(self) -> int:
        """0: all published. 3: some failed. 4: stopped at max_failures. 130: interrupted."""
        if self.state == "interrupted":
            return 130
        if self.state == "stopped":
            return TooManyFailures.exit_code
        return 3 if self.summary["counts"]["failed"] else 0


def run_job(job: Job, options: RunOptions | None = None, watch: Watch | None = None) -> JobResult:
    """Validate, plan and carry out a job; running it again continues it.

    Raises:
        SpecError: the manifest has errors; nothing ran and no Ray was started.
        BaseError: the base cannot be used.
        JobBusy: another run holds this job.
        StoreError: storage cannot be written; what was published stays.
    """
    validation = manifest.validate(job.subjects)
    if validation.errors:
        raise SpecError(validation.problems)
    base = backbones.resolve(job.base, job.base_revision)
    store = Store(job.storage)
    journal = Journal(store, job.id)
    with journal.hold():
        plan = make_plan(job, base, validation.subjects, store)
        run = _Run(plan, journal, options or RunOptions(), watch or Silence())
        return run.carry_out()


@dataclass
class _Run:
    """One run of a job: the state of the driver."""

    plan: Plan
    journal: Journal
    options: RunOptions
    watch: Watch
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    phase_seconds: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def carry_out(self) -> JobResult:
        """Do what the plan says, whatever happens write down how it ended."""
        self._started, self._started_at = time.monotonic(), utc_now()
        self._carry_over()
        self.journal.begin(self.plan, dbray.__version__)
        state: State = "broken"
        try:
            self._update("running", force=True)
            self._work()
            state = "finished"
        except TooManyFailures as exc:
            self.watch.note(str(exc))
            state = "stopped"
        except KeyboardInterrupt:
            self.watch.note("interrupted; run the same command to continue")
            state = "interrupted"
        finally:
            self._cancel_rest()
            summary = self._update(state, force=True)
        report = build_report(self.journal.store, self.plan.job.id)
        return JobResult(
            self.plan.job.id,
            state,
            tuple(self.outcomes.values()),
            summary,
            self.journal.store.location(report),
        )

    def _carry_over(self) -> None:
        """Outcomes that stand already: published before, or failed in a way that repeats."""
        before = self.journal.outcomes()
        for planned in self.plan.kept:
            self.outcomes[planned.subject.id] = Outcome(
                planned.subject.id, planned.subject.class_noun, "kept", planned.revision,
                planned.identifier, attempts=0,
            )  # fmt: skip
        self.to_train = []
        for planned in self.plan.to_train:
            last = before.get(planned.subject.id)
            repeats = (
                last is not None
                and last.revision == planned.revision
                and last.error is not None
                and not last.error.retryable
            )
            if last is not None and repeats and not self.options.retry_failed:
                self.outcomes[planned.subject.id] = last
            else:
                self.to_train.append(planned)

    def _work(self) -> None:
        registry = Registry(self.journal.store)
        if self.to_train or self._without_previews(registry):
            with connected(self.options.address, self.watch.note):
                self._make_priors()
                self._train()
                self._make_previews(registry)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.phase_seconds[name] = time.monotonic() - start

    def _make_priors(self) -> None:
        nouns = {planned.subject.class_noun for planned in self.to_train}
        plans = [prior for prior in self.plan.missing_priors if prior.class_noun in nouns]
        if not plans:
            return
        with self._phase("class images"):
            made = make_priors(
                self.journal.store,
                self.plan.base,
                plans,
                self._pool(),
                lambda done, total: self.watch.progress("class images", done, total),
            )
        self.facts["prior_images"] = made.num_images
        self.facts["prior_images_per_second"] = round(made.images_per_second, 2)
        self.facts["prior_sets"] = len(plans)

    def _pool(self) -> SamplingPool:
        resources = self.plan.job.resources
        return SamplingPool(resources.prior_actors, resources.threads_per_worker)

    def _train(self) -> None:
        if not self.to_train:
            return
        resources = self.plan.job.resources
        queue = ray.remote(LeaseQueue).options(num_cpus=0).remote(
            self.to_train, resources.max_attempts, resources.lease_seconds
        )  # fmt: skip
        held = hardware()
        count = min(num_lanes(self.plan, held), len(self.to_train))
        self.facts["lanes"] = count
        lanes = [
            _LaneThread(
                LaneSpec(f"lane-{index}", self.plan.job, self.plan.base, queue,
                         use_gpu=held.num_gpus > 0)
            )
            for index in range(count)
        ]  # fmt: skip
        with self._phase("training"):
            for lane in lanes:
                lane.start()
            self._follow(queue, lanes)
            for lane in lanes:
                lane.join(_JOIN_SECONDS)
        self.journal.forget_lanes()

    def _follow(self, queue: Any, lanes: Sequence[_LaneThread]) -> None:
        """Watch the queue until every subject has ended. Raises TooManyFailures."""
        num_seen, steps = 0, self.plan.job.recipe.steps
        while True:
            snapshot: Snapshot = ray.get(queue.snapshot.remote(num_seen))
            num_seen += len(snapshot.outcomes)
            for outcome in snapshot.outcomes:
                self.outcomes[outcome.id] = outcome
                self.watch.ended(outcome)
                metrics.subjects().inc(tags={"status": outcome.status})
            self._show(snapshot, num_seen, steps)
            self._update("running", force=False)
            self._check_failures()
            if snapshot.is_done:
                return
            if not any(lane.is_alive() for lane in lanes):
                errors = [str(lane.error) for lane in lanes if lane.error]
                ray.get(queue.abandon.remote("; ".join(errors) or "no lane is left"))
            time.sleep(_POLL_SECONDS)

    def _show(self, snapshot: Snapshot, num_ended: int, steps: int) -> None:
        in_flight = {lane: {"id": one, "step": step}
                     for lane, (one, step) in sorted(snapshot.in_flight.items())}  # fmt: skip
        self.facts["in_flight"] = in_flight
        self.facts["pending"] = snapshot.num_pending
        metrics.pending_subjects().set(snapshot.num_pending)
        metrics.lanes().set(len(in_flight))
        detail = ", ".join(f"{at['id']} {at['step']}/{steps}" for at in in_flight.values())
        self.watch.progress("training", num_ended, snapshot.num_subjects, detail)

    def _check_failures(self) -> None:
        limit = self.options.max_failures
        failed = counts(tuple(self.outcomes.values()))["failed"]
        if limit is not None and failed > limit:
            raise TooManyFailures(f"stopped: {failed} subjects failed, more than --max-failures "
                                  f"{limit}; fix the cause and run again")  # fmt: skip

    def _without_previews(self, registry: Registry) -> list[PreviewRequest]:
        """Published subjects of this job that have no previews yet."""
        if not self.plan.job.previews.prompts:
            return []
        requests = []
        for planned in (*self.plan.kept, *self.plan.to_train):
            if not registry.has(planned.subject.id, planned.revision):
                continue
            record = registry.find(f"{planned.subject.id}@{planned.revision}")
            if not registry.has_previews(record):
                requests.append(PreviewRequest(record, planned.subject.images))
        return requests

    def _make_previews(self, registry: Registry) -> None:
        requests = self._without_previews(registry)
        if not requests:
            return
        with self._phase("previews"):
            broken = make_previews(
                self.journal.store,
                self.plan.base,
                requests,
                self.plan.job.previews,
                self._pool(),
                lambda done, total: self.watch.progress("previews", done, total),
            )
        for model_id, error in broken:
            self.watch.note(f"no previews of {model_id}: {error}")

    def _cancel_rest(self) -> None:
        for planned in self.to_train:
            self.outcomes.setdefault(
                planned.subject.id,
                Outcome(
                    planned.subject.id, planned.subject.class_noun, "cancelled", planned.revision,
                    planned.identifier, attempts=0,
                ),
            )  # fmt: skip

    def _update(self, state: State, force: bool) -> dict[str, Any]:
        """Write the journal; returns the summary."""
        outcomes = tuple(self.outcomes.values())
        wall = time.monotonic() - self._started
        published = [outcome for outcome in outcomes if outcome.status == "published"]
        command = self.options.command or f"dbray run {self.plan.job.id}.yaml"
        summary = {
            "job_id": self.plan.job.id,
            "state": state,
            "counts": counts(outcomes),
            "num_subjects": len(self.plan.to_train) + len(self.plan.kept),
            "started_at": self._started_at,
            "ended_at": utc_now(),
            "wall_seconds": round(wall, 2),
            "phase_seconds": {k: round(v, 2) for k, v in self.phase_seconds.items()},
            "subjects_per_hour": round(len(published) / wall * 3600, 1),
            "prior_images": 0,
            "prior_images_per_second": None,
            "prior_sets": 0,
            "train_steps": len(published) * self.plan.job.recipe.steps,
            "lanes": 0,
            "failures": failures_by_cause(outcomes),
            "retry_command": f"{command} --retry-failed",
            "base_digest": self.plan.base.digest,
            "rates": _rates(published, self.plan.job.recipe.steps, self.facts),
            **self.facts,
        }
        if state != "running":
            summary.pop("in_flight", None)
            summary.pop("pending", None)
            failed = {outcome.id for outcome in outcomes if outcome.status == "failed"}
            self.journal.write_failed(
                [one.subject for one in self.plan.to_train if one.subject.id in failed]
            )
        self.journal.sample({"counts": summary["counts"], "pending": self.facts.get("pending")})
        self.journal.update(outcomes, summary, force)
        return summary


def _rates(
    published: Sequence[Outcome], steps: int, facts: dict[str, Any]
) -> dict[str, float | None] | None:
    """Seconds per step and per subject beside its steps, for the next plan's estimate."""
    if not published:
        return None
    train = sum(outcome.timings.get("train", 0.0) for outcome in published)
    other = sum(sum(outcome.timings.values()) for outcome in published) - train
    return {
        "step_seconds": round(train / len(published) / steps, 6),
        "overhead_seconds": round(other / len(published), 4),
        "prior_images_per_second": facts.get("prior_images_per_second"),
    }


class _LaneThread(threading.Thread):
    """Holds one lane; keeps the error that ended it."""

    def __init__(self, spec: LaneSpec) -> None:
        super().__init__(name=spec.name, daemon=True)
        self._spec = spec
        self.error: DbrayError | None = None

    def run(self) -> None:
        """Hold the lane until it ends."""
        try:
            run_lane(self._spec)
        except DbrayError as exc:
            logger.warning("lane lost lane=%s error=%s", self._spec.name, exc)
            self.error = exc
