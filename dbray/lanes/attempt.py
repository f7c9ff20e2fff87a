"""One attempt at a subject: encoded, trained in a slot of a lane's pack, and published.

Does not know leases, nor what becomes of a subject whose attempt fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dbray.lanes.beat import Clock
from dbray.lanes.checkpoint import Checkpoint
from dbray.lanes.fidelity import Watch
from dbray.lanes.lane import Lane
from dbray.planning.plan import PlannedSubject
from dbray.training.data import TrainingData
from dbray.training.device import translated
from dbray.training.loop import Course, Progress
from dbray.training.teacher import teach


class Attempt:
    """One attempt. All ranks make the same calls, in the order of the methods."""

    course: Course
    """The subject's steps, from `begin` on."""
    _data: TrainingData
    _watch: Watch
    _first: int
    """The step that this attempt begins after."""

    def __init__(self, lane: Lane, slot: int, planned: PlannedSubject, clock: Clock) -> None:
        self.planned, self.clock, self.is_published = planned, clock, False
        self._lane, self._slot, self._engine = lane, slot, lane.pack.engines[slot]
        stage, num_slots = lane.resources.zero_stage, len(lane.pack.engines)
        self._checkpoint = Checkpoint(
            lane.store, lane.job.id, planned.revision, lane.share, stage, num_slots
        )

    @property
    def subject_id(self) -> str:
        """The id of the subject."""
        return self.planned.subject.id

    def encode(self) -> None:
        """Read and encode the subject, which each rank does on its own."""
        with self.clock.phase("encode"), translated(self._lane.device):
            self._data = self._lane.material.of(self.planned, self._lane.beat)

    def begin(self) -> None:
        """Reset the slot, continue from a checkpoint if there is one, and ask the teacher."""
        lane, engine = self._lane, self._engine
        with self.clock.phase("reset"):
            engine.reset()
            begun = lane.method.begin(engine.module, self.planned.identifier, self._slot)
            engine.assign(begun)
        self._watch = self._follow()
        with self.clock.phase("reset"), lane.beat.meanwhile():
            resume = self._checkpoint.restore(engine)
        self._watch.resume(resume)
        self._first = resume.step
        lane.beat.begin(self.subject_id, resume.step)
        data = self._data
        if self.planned.is_taught:
            with self.clock.phase("teacher"):
                data = self._taught(begun, resume)
        self.course = Course(data, lane.recipe, lane.schedule, lane.share, resume)

    def _follow(self) -> Watch:
        """Follow the subject's fidelity, which rank 0 measures. The slot holds base weights."""
        lane, meter, reference = self._lane, self._lane.meter, None

        def touch(*_: Any) -> None:
            lane.beat.touch()

        if meter is not None:
            with self.clock.phase("fidelity"), lane.pack.alone(self._slot):
                reference = meter.reference(self.planned, self._data.photographs, touch)

        def measure() -> tuple[float, float]:
            found = (0.0, 0.0)
            with self.clock.phase("fidelity"):
                if meter is not None and reference is not None:
                    with lane.pack.alone(self._slot), self._engine.averaged():
                        found = meter.measure(self.planned, reference, touch)
                return lane.share.of_first(found)

        ceiling = lane.share.of_first(reference.ceiling if reference else 1.0)
        recipe = lane.recipe
        return Watch(recipe.stop, recipe.steps, measure, self._engine.weights, ceiling)

    def _taught(self, begun: Mapping[str, Tensor], resume: Progress) -> TrainingData:
        """Ask the untouched base for its predictions, in the place of what was restored."""
        lane, engine = self._lane, self._engine
        state = engine.state() if resume.step else None
        if state is not None:
            engine.reset()
            engine.assign(begun)
        taught = teach(
            engine,
            lane.schedule,
            self._data,
            lane.recipe,
            share=lane.share,
            first=resume.step,
            after_lesson=lane.beat.touch,
        )
        if state is not None:
            engine.load_state(state)
        return taught

    def finish_step(self) -> None:
        """Finish a step that the pack took; after the last one, or once it is learnt, publish."""
        lane, course = self._lane, self.course
        if lane.after_step is not None:
            lane.after_step(self._engine)
        course.advance()
        lane.beat(self.subject_id, course.step)
        self.clock.steps = course.step - self._first
        if self._watch.look(course.step) or course.is_over:
            self._publish()
            return
        every = lane.resources.checkpoint_every
        if every and course.step % every == 0:
            with self.clock.phase("train"):
                self._save()

    def _save(self) -> None:
        # Blocks on the device: no beats meanwhile, or a hanging device would seem alive.
        state, reached = self._engine.state(), self._watch.noted(self.course.progress())
        with self._lane.beat.meanwhile():
            self._checkpoint.save(state, reached)

    def _publish(self) -> None:
        lane = self._lane
        losses = self.course.points()
        lane.beat.now()
        with self.clock.phase("publish"), lane.beat.meanwhile():
            trained = self._watch.result(losses)
            if lane.leads:
                files = lane.method.publish(
                    self._engine.module, trained.best, lane.recipe, self._slot
                )
                lane.publisher.publish(self.planned, files, trained, self.clock)
            self._checkpoint.remove()
        self.is_published = True
