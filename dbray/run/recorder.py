"""The recorder of a run: its tally, the journal on storage, the watch, and the metrics.

Phases report here. Does not know what each receiver does with a report.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from dbray import metrics
from dbray.errors import DbrayError
from dbray.lanes.leases import Snapshot
from dbray.planning.cascade import num_steps
from dbray.records.results import Summary
from dbray.repeating import repeating
from dbray.run.journal import Journal
from dbray.run.tally import State, Tally
from dbray.run.watch import Watch

logger = logging.getLogger(__name__)

_HEARTBEAT_SECONDS = 10.0
_MOST_NAMED = 4


@dataclass(frozen=True)
class Recorder:
    """Passes the events of a run to all receivers."""

    tally: Tally
    journal: Journal
    watch: Watch

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase; `progress` within it belongs to that phase."""
        with self.tally.phase(name):
            yield

    def progress(self, done: int, total: int, detail: str = "") -> None:
        """Report that `done` of `total` are finished in the running phase."""
        self.watch.progress(self.tally.progress(done, total), done, total, detail)

    def take(self, snapshot: Snapshot) -> None:
        """Report the state of the lanes, and the subjects that ended."""
        self.tally.snapshot = snapshot
        for outcome in snapshot.outcomes:
            self.tally.add(outcome)
            self.watch.ended(outcome)
            metrics.subjects().inc(tags={"status": outcome.status})
        metrics.pending_subjects().set(self.tally.num_pending or 0)
        metrics.lanes().set(len({lane for lane, _ in snapshot.in_flight.values()}))
        detail = _detail(snapshot, num_steps(self.tally.plan.job, self.tally.plan.base))
        self.progress(self.tally.num_ended, len(self.tally.plan.to_train), detail)
        self.write_if_due()

    def heartbeat(self) -> AbstractContextManager[None]:
        """Keep the journal current while the run waits: a silent run counts as dead."""
        return repeating(self._beat, _HEARTBEAT_SECONDS)

    def _beat(self) -> None:
        try:
            self.write_if_due()
        except DbrayError as exc:  # the main thread meets the same error, and raises it
            logger.warning("journal not written error=%s", exc)

    def write_if_due(self) -> None:
        """Write the journal, unless it was written a moment ago."""
        if self.journal.is_due:
            self.write("running")

    def write(self, state: State, error: str | None = None) -> Summary:
        """Write the journal; returns the summary."""
        outcomes = tuple(self.tally.outcomes.values())
        summary = self.tally.summary(state, error)
        if state != "running":
            self.journal.write_failed(self.tally.failed_subjects)
        self.journal.write(outcomes, summary)
        return summary


def _detail(snapshot: Snapshot, steps: int) -> str:
    """Say how far the subjects in flight are: each of a few, or many together."""
    at = {subject_id: step for subject_id, (_, step) in sorted(snapshot.in_flight.items())}
    if len(at) <= _MOST_NAMED:
        return ", ".join(f"{subject_id} {step}/{steps}" for subject_id, step in at.items())
    return f"{len(at)} subjects at {min(at.values())} to {max(at.values())} of {steps} steps"
