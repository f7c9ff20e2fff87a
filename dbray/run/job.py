"""Carry out a job: plan it, run the phases in order, and record how it ended.

However a run ends, published models stay, and running the same job again continues it.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import dbray
from dbray.cluster import connected
from dbray.errors import DbrayError, TooManyFailures
from dbray.planning.checked import Checked, Ready
from dbray.planning.checks import check_file, check_job
from dbray.planning.ids import settle_id
from dbray.planning.plan import Plan, make_plan
from dbray.records.results import Outcome, Summary, read_summary
from dbray.report import write_report
from dbray.run.annexes import AnnexPhase
from dbray.run.journal import Journal
from dbray.run.measuring import measure_identifiers
from dbray.run.options import RunOptions
from dbray.run.phases import ClassImages, Training, take_turns
from dbray.run.previews import PreviewImages
from dbray.run.recorder import Recorder
from dbray.run.scores import Flagged, ModelScores, flagged_in
from dbray.run.tally import RETRY_IN_PYTHON, State, Tally
from dbray.run.watch import Silence, Watch
from dbray.spec.job import Job
from dbray.storage.store import Store

ANNEXES: tuple[type[AnnexPhase], ...] = (PreviewImages, ModelScores)
"""The phases after training, in order."""


@dataclass(frozen=True)
class JobResult:
    """How a job ended."""

    job_id: str
    state: State
    outcomes: tuple[Outcome, ...]
    summary: Summary
    report: str
    """Path or URI of report.html."""
    flagged: tuple[Flagged, ...] = ()
    """The models whose scores show faults."""

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
    job: Job | Ready | str, options: RunOptions | None = None, watch: Watch | None = None
) -> JobResult:
    """Check, plan and carry out a job, or the job file at a path; running it again continues it.

    Raises:
        SpecError: the job, its base or its subjects have mistakes; nothing ran and Ray was not
            started.
        JobBusy: another run holds this job.
        StoreError: storage cannot be written; published models stay.
    """
    options, watch = options or RunOptions(), watch or Silence()
    ready = job if isinstance(job, Ready) else _check(job).ready(options.skip_invalid)
    store = Store(ready.job.storage)
    ready = settle_id(ready, store)
    journal = Journal(store, ready.job.id)
    with journal.hold(), ExitStack() as cluster:
        plan = make_plan(ready, store, options.retry_failed)
        while plan.unmeasured:
            cluster.enter_context(connected(options.address, watch.note))
            measure_identifiers(plan, ready.naming.rare, store)
            plan = make_plan(ready, store, options.retry_failed)
        for warning in plan.warnings:
            watch.note(str(warning))
        return _carry_out(plan, Recorder(_tally(plan, store, options), journal, watch), options)


def _check(job: Job | str) -> Checked:
    return check_job(job) if isinstance(job, Job) else check_file(Path(job))


def _tally(plan: Plan, store: Store, options: RunOptions) -> Tally:
    previous = read_summary(store, plan.job.id)
    retry = f"{options.command} --retry-failed" if options.command else RETRY_IN_PYTHON
    return Tally(plan, retry, previous.rates if previous else None)


def _carry_out(plan: Plan, recorder: Recorder, options: RunOptions) -> JobResult:
    """Carry out the plan; whatever happens, record how it ended."""
    # Leave Ray last, after the end is recorded: its shutdown may end this process.
    with ExitStack() as cluster:
        try:
            recorder.journal.begin(plan, dbray.__version__)
            recorder.write("running")
            with recorder.heartbeat():
                _run_phases(plan, recorder, options, cluster)
        except TooManyFailures as exc:
            recorder.watch.note(str(exc))
            return _end(recorder, "stopped", str(exc))
        except KeyboardInterrupt:
            recorder.watch.note("interrupted; run the same command to continue")
            return _end(recorder, "interrupted")
        except BaseException as exc:
            state: State = "broken" if isinstance(exc, Exception) else "interrupted"
            with suppress(DbrayError):  # the first error is the one to raise
                _end(recorder, state, _text_of(exc))
            raise
        return _end(recorder, "finished")


def _run_phases(plan: Plan, recorder: Recorder, options: RunOptions, cluster: ExitStack) -> None:
    """Run the phases in order; connect to Ray only if one of them has work."""
    training = Training(plan, recorder, options.max_failures)
    wanted = [one for one in ANNEXES if options.score or one is not ModelScores]
    annexes = [phase(plan, recorder) for phase in wanted]
    training.forget_checkpoints()
    training.check_disk()
    if not plan.to_train and not any(phase.requests for phase in annexes):
        return
    cluster.enter_context(connected(options.address, recorder.watch.note))
    training.count_lanes()
    take_turns(ClassImages(plan, recorder), training)
    for phase in annexes:
        phase.run()


def _end(recorder: Recorder, state: State, error: str | None = None) -> JobResult:
    """Record how the run ended."""
    recorder.tally.mark_unfinished()
    summary = recorder.write(state, error)
    store, job_id = recorder.journal.store, recorder.tally.plan.job.id
    path, contents = write_report(store, job_id)
    outcomes, report = tuple(recorder.tally.outcomes.values()), store.location(path)
    return JobResult(job_id, state, outcomes, summary, report, flagged_in(contents))


def _text_of(exc: BaseException) -> str:
    return str(exc) if isinstance(exc, DbrayError) else f"{type(exc).__name__}: {exc}"
