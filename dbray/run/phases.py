"""The first phases of a run: class images and training. Each makes what the plan lacks.

Owns what a phase needs from the plan. dbray.run.job owns the order of phases and the end of a run.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from dbray.cluster import hardware
from dbray.errors import BaseError, SpecError, TooManyFailures
from dbray.lanes.checkpoint import forget_checkpoints
from dbray.lanes.group import open_lanes
from dbray.planning.cost import num_lanes, too_small
from dbray.planning.plan import Plan
from dbray.planning.room import check_disk
from dbray.run.packing import settle_pack
from dbray.run.recorder import Recorder
from dbray.sampling.pool import SamplingPool
from dbray.sampling.priors import make_priors


@dataclass(frozen=True)
class ClassImages:
    """Makes the missing class images."""

    plan: Plan
    recorder: Recorder

    def run(self) -> None:
        """Make them. Raises LaneLost, StoreError."""
        if not self.plan.missing_priors:
            return
        with self.recorder.phase("class images"):
            self.recorder.tally.priors = make_priors(
                self.recorder.journal.store,
                self.plan.base,
                self.plan.missing_priors,
                SamplingPool.of(self.plan.job.resources),
                self.recorder.progress,
            )


@dataclass(frozen=True)
class Training:
    """Trains and publishes the remaining subjects."""

    plan: Plan
    recorder: Recorder
    max_failures: int | None = None

    def count_lanes(self) -> None:
        """Count the lanes that fit on the cluster. Raises SpecError if none fits."""
        if self.plan.to_train:
            held = hardware()
            lanes = self.recorder.tally.lanes = num_lanes(self.plan, held)
            if not lanes:
                raise SpecError([too_small(self.plan.job.resources, held)])

    def check_disk(self) -> None:
        """Raise StoreError if the published models will not fit on the disk."""
        with suppress(BaseError):  # the lanes report a base that has vanished
            check_disk(self.plan, self.recorder.journal.store)

    def run(self) -> None:
        """Train. Raises LaneLost, StoreError, TooManyFailures."""
        if not self.plan.to_train:
            return
        journal, plan = self.recorder.journal, settle_pack(self.plan, self.recorder)
        with (
            self.recorder.phase("training"),
            open_lanes(plan, self.recorder.tally.lanes, journal.lanes_folder,
                       self.recorder.watch.note) as lanes,
        ):  # fmt: skip
            for snapshot in lanes.snapshots():
                self.recorder.take(snapshot)
                self._stop_at_max_failures()
        journal.forget_lanes()
        self.forget_checkpoints()

    def forget_checkpoints(self) -> None:
        """Remove the checkpoints that no run will continue from: they are large."""
        resumable = self.recorder.tally.resumable
        forget_checkpoints(self.recorder.journal.store, self.plan.job.id, resumable)

    def _stop_at_max_failures(self) -> None:
        num_failed = len(self.recorder.tally.failed)
        if self.max_failures is not None and num_failed > self.max_failures:
            raise TooManyFailures(
                f"stopped: {num_failed} subjects failed, more than --max-failures "
                f"{self.max_failures}; fix the cause and run again with --retry-failed"
            )
