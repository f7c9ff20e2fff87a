"""The first phases of a run: class images and training, which take turns.

Both fill every device of a cluster, so they share the devices in time: class images are made for a
turn, then the lanes train the subjects whose sets are complete, then the next class images are
made. Each turn of class images takes at least as long as the run has taken so far. So the first
model does not wait for the class images of the whole job, and lanes and actors are started again
few times: the number of turns grows with the logarithm of the time.

Owns the turns, and what a phase needs from the plan. dbray.run.job owns the end of a run.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from dbray.bases import Base
from dbray.cluster import hardware
from dbray.errors import BaseError, SpecError, TooManyFailures
from dbray.lanes.checkpoint import forget_checkpoints
from dbray.lanes.group import open_lanes
from dbray.planning.cost import num_lanes, too_small
from dbray.planning.plan import Plan, PlannedSubject
from dbray.planning.room import check_disk
from dbray.records.prior_sets import PriorPlan
from dbray.run.packing import settle_pack
from dbray.run.recorder import Recorder
from dbray.sampling.pool import SamplingPool
from dbray.sampling.priors import IsEnough, make_priors

LEAST_TURN_SECONDS = 60.0
"""The least time that class images are made before lanes start, which takes about as long."""


@dataclass
class ClassImages:
    """Makes the missing class images, in turns."""

    plan: Plan
    recorder: Recorder
    missing: dict[str, PriorPlan] = field(init=False)
    """The sets that are not complete, by digest; those that most subjects wait for come first."""

    def __post_init__(self) -> None:
        each = (digest for one in self.plan.to_train for digest in _digests_of(one))
        num_waiting = Counter(each)
        most_first = sorted(self.plan.missing_priors, key=lambda one: -num_waiting[one.digest])
        self.missing = {one.digest: one for one in most_first}

    def run(self) -> None:
        """Make them until all are there or the turn is over. Raises LaneLost, StoreError."""
        if not self.missing:
            return
        with self.recorder.phase("class images"):
            self._make(self.plan.base, [one for one in self._open if one.enlarging is None])
            second = self.plan.base.super_resolution
            if second is not None:  # its images are made from those of the first stage
                self._make(second, [one for one in self._open if one.enlarging is not None
                                    and one.source.digest not in self.missing])  # fmt: skip

    @property
    def _open(self) -> list[PriorPlan]:
        return list(self.missing.values())

    def _make(self, base: Base, plans: Sequence[PriorPlan]) -> None:
        """Make the sets of one stage until all are there or the turn is over."""
        tally, before = self.recorder.tally, self.recorder.tally.priors
        tally.priors = before + make_priors(
            self.recorder.journal.store,
            base,
            plans,
            SamplingPool.of(self.plan.job.resources),
            lambda done, total: self.recorder.progress(
                before.num_images + done, before.num_images + total
            ),
            end_of_turn(max(LEAST_TURN_SECONDS, tally.seconds)),
        )
        for digest in tally.priors.digests:
            self.missing.pop(digest, None)

    def waits(self, planned: PlannedSubject) -> bool:
        """Whether a subject waits for class images."""
        return any(digest in self.missing for digest in _digests_of(planned))


def _digests_of(planned: PlannedSubject) -> list[str | None]:
    return [planned.prior_digest, planned.enlarged_digest]


def end_of_turn(seconds: float) -> IsEnough:
    """Decide when a turn that begins now is over.

    That is so after these seconds, unless the other images would not take longer than these.
    """
    began = time.monotonic()

    def is_over(done: int, total: int) -> bool:
        taken = time.monotonic() - began
        return taken >= seconds and taken * (total - done) > seconds * done

    return is_over


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

    def run(self, subjects: Sequence[PlannedSubject]) -> None:
        """Train these subjects. Raises LaneLost, StoreError, TooManyFailures."""
        journal, plan = self.recorder.journal, settle_pack(self.plan, self.recorder)
        count = min(self.recorder.tally.lanes, len(subjects))
        with (
            self.recorder.phase("training"),
            open_lanes(plan, subjects, count, journal.lanes_folder,
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


def take_turns(images: ClassImages, training: Training) -> None:
    """Make class images and train until all subjects have ended. Raises as both do."""
    tally = training.recorder.tally
    while tally.remaining:
        images.run()
        training.run([one for one in tally.remaining if not images.waits(one)])
