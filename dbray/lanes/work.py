"""The training of a subject in one stage of a lane: encoded, reset, taken through its steps.

Does not know the other stages, nor what becomes of the trained weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dbray.lanes.beat import Clock
from dbray.lanes.checkpoint import Checkpoint
from dbray.lanes.fidelity import Watch
from dbray.lanes.lane import Lane
from dbray.lanes.stage import Stage
from dbray.planning.plan import PlannedSubject
from dbray.training.data import TrainingData
from dbray.training.device import translated
from dbray.training.loop import Course, Progress
from dbray.training.teacher import teach

SECOND = "super_resolution"
"""Folder of the second stage's checkpoints, in that of the first."""


class Work:
    """A subject in a slot of one stage. All ranks make the same calls, in order of the methods."""

    course: Course
    """The subject's steps, from `begin` on."""
    _data: TrainingData
    _watch: Watch

    def __init__(
        self, lane: Lane, stage: Stage, slot: int, planned: PlannedSubject, clock: Clock
    ) -> None:
        self.stage = stage
        self._planned, self._clock, self._lane, self._slot = planned, clock, lane, slot
        self._engine = stage.pack.engines[slot]
        self._before = lane.recipe.steps if stage.is_second else 0
        """Steps of the stages before."""
        part = f"{planned.revision}/{SECOND}" if stage.is_second else planned.revision
        zero, num_slots = lane.resources.zero_stage, lane.num_slots
        self._checkpoint = Checkpoint(lane.store, lane.job.id, part, lane.share, zero, num_slots)

    def encode(self) -> None:
        """Read and encode the subject, which each rank does on its own."""
        with self._clock.phase("encode"), translated(self._lane.device):
            self._data = self.stage.material.of(self._planned, self._lane.beat)

    def begin(self) -> None:
        """Reset the slot, continue from a checkpoint if there is one, and ask the teacher."""
        lane, stage, engine = self._lane, self.stage, self._engine
        with self._clock.phase("reset"):
            engine.reset()
            begun = stage.method.begin(engine.module, self._planned.identifier, self._slot)
            engine.assign(begun)
        self._watch = self._follow()
        with self._clock.phase("reset"), lane.beat.meanwhile():
            resume = self._checkpoint.restore(engine)
        self._watch.resume(resume)
        lane.beat.begin(self._planned.subject.id, self._before + resume.step)
        data = self._data
        if self._planned.is_taught:
            with self._clock.phase("teacher"):
                data = self._taught(begun, resume)
        self.course = Course(data, stage.recipe, stage.schedule, lane.share, resume)

    @property
    def is_over(self) -> bool:
        """Whether its training has ended: after the last step, or once the subject is learnt."""
        return self.course.is_over or self._watch.has_ended

    def _follow(self) -> Watch:
        """Follow the subject's fidelity, which rank 0 measures. The slot holds base weights."""
        lane, pack = self._lane, self.stage.pack
        meter, reference = (None if self.stage.is_second else lane.meter), None

        def touch(*_: Any) -> None:
            lane.beat.touch()

        if meter is not None:
            with self._clock.phase("fidelity"), pack.alone(self._slot):
                reference = meter.reference(self._planned, self._data.photographs, touch)

        def measure() -> tuple[float, float]:
            found = (0.0, 0.0)
            with self._clock.phase("fidelity"):
                if meter is not None and reference is not None:
                    with pack.alone(self._slot), self._engine.averaged():
                        found = meter.measure(self._planned, reference, touch)
                return lane.share.of_first(found)

        ceiling = lane.share.of_first(reference.ceiling if reference else 1.0)
        recipe = self.stage.recipe
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
            self.stage.schedule,
            self._data,
            self.stage.recipe,
            share=lane.share,
            first=resume.step,
            after_lesson=lane.beat.touch,
        )
        if state is not None:
            engine.load_state(state)
        return taught

    def finish_step(self) -> None:
        """Finish a step that the pack took."""
        lane, course = self._lane, self.course
        if self.stage.after_step is not None:
            self.stage.after_step(self._engine)
        course.advance()
        lane.beat(self._planned.subject.id, self._before + course.step)
        self._clock.steps += 1
        self._watch.look(course.step)
        every = lane.resources.checkpoint_every
        if every and course.step % every == 0 and not self.is_over:
            self.save()

    def save(self) -> None:
        """Save a checkpoint."""
        # Blocks on the device: no beats meanwhile, or a hanging device would seem alive.
        with self._clock.phase("train"):
            state, reached = self._engine.state(), self._watch.noted(self.course.progress())
            with self._lane.beat.meanwhile():
                self._checkpoint.save(state, reached)

    def result(self) -> tuple[dict[str, bytes], Progress]:
        """Return the files of the trained weights, on rank 0, and how they were reached."""
        trained = self._watch.result(self.course.points())
        if not self._lane.leads:
            return {}, trained
        publish, recipe = self.stage.method.publish, self.stage.recipe
        return publish(self._engine.module, trained.best, recipe, self._slot), trained

    def forget(self) -> None:
        """Remove the checkpoints of this stage and of those after it."""
        self._checkpoint.remove()
