"""One attempt at a subject: trained in a slot of a lane, stage after stage, and published.

Does not know leases, nor what becomes of a subject whose attempt fails.
"""

from __future__ import annotations

from dbray.lanes.beat import Clock
from dbray.lanes.lane import Lane
from dbray.lanes.stage import Stage
from dbray.lanes.work import Work
from dbray.planning.plan import PlannedSubject
from dbray.training.loop import Course, Progress


class Attempt:
    """One attempt. All ranks make the same calls, in the order of the methods."""

    def __init__(self, lane: Lane, slot: int, planned: PlannedSubject, clock: Clock) -> None:
        self.planned, self.clock, self.is_published = planned, clock, False
        self._lane = lane
        self._works = [Work(lane, stage, slot, planned, clock) for stage in lane.stages]
        self._results: list[tuple[dict[str, bytes], Progress]] = []

    @property
    def subject_id(self) -> str:
        """The id of the subject."""
        return self.planned.subject.id

    @property
    def _work(self) -> Work:
        """The present stage's; after the last one, still that."""
        return self._works[min(len(self._results), len(self._works) - 1)]

    @property
    def stage(self) -> Stage:
        """The stage whose steps it takes."""
        return self._work.stage

    @property
    def course(self) -> Course:
        """The steps of that stage, from `begin` on."""
        return self._work.course

    def encode(self) -> None:
        """Read and encode the subject for every stage, which each rank does on its own."""
        for work in self._works:
            work.encode()

    def begin(self) -> None:
        """Begin with the first stage that has not ended before a checkpoint."""
        self._work.begin()
        self._go_on()

    def finish_step(self) -> None:
        """Finish a step that the pack took; after a stage's last one, go on to the next."""
        self._work.finish_step()
        if self._work.is_over and self._keeps_ends and self._work is not self._works[-1]:
            self._work.save()
        self._go_on()

    @property
    def _keeps_ends(self) -> bool:
        """Whether the end of a stage is a checkpoint too."""
        return bool(self._lane.resources.checkpoint_every)

    def _go_on(self) -> None:
        """Begin with the next stage if this one has ended; after the last one, publish."""
        while self._work.is_over and not self.is_published:
            self._lane.beat.now()
            with self.clock.phase("publish"), self._lane.beat.meanwhile():
                self._results.append(self._work.result())
                if len(self._results) == len(self._works):
                    self._publish()
                    return
            self._work.begin()

    def _publish(self) -> None:
        if self._lane.leads:
            self._lane.publisher.publish(self.planned, self._results, self.clock)
        self._works[0].forget()
        self.is_published = True
