"""One subject's training loop: encoded rows in, loss curve out; the weights stay in the engine.

Knows neither Ray nor storage nor model families.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import add

from torch import Tensor

from dbray.bases.schedule import Schedule
from dbray.spec.recipe import Recipe
from dbray.training import losses
from dbray.training.batches import ALONE, Batch, Share, draw_batches
from dbray.training.curve import MAX_LOSS_POINTS, Curve, LossPoint, LossSums
from dbray.training.data import TrainingData
from dbray.training.engine import Engine
from dbray.training.stopping import FidelityPoint


@dataclass(frozen=True)
class Progress:
    """How far a subject is: steps taken, and the loss curve so far.

    Where training may stop early, also the fidelity curve, and the best weights of rank 0.
    """

    step: int = 0
    curve: tuple[LossPoint, ...] = ()
    fidelity: tuple[FidelityPoint, ...] = ()
    best: Mapping[str, Tensor] = field(default_factory=dict)


def finetune(  # noqa: PLR0913 - what a step needs, and where to begin
    engine: Engine,
    schedule: Schedule,
    data: TrainingData,
    recipe: Recipe,
    *,
    share: Share = ALONE,
    resume: Progress = Progress(),
    on_step: Callable[[int, Callable[[], Progress]], bool | None] | None = None,
    after_step: Callable[[Engine], None] | None = None,
) -> tuple[LossPoint, ...]:
    """Take the recipe's steps on one subject, or fewer.

    Args:
        engine: holds base weights, or those that `resume` left.
        schedule: the base's noise schedule, on the engine's device.
        data: the encoded subject and class images.
        recipe: the resolved recipe.
        share: this rank's part of every batch.
        resume: the progress to continue from.
        on_step: called after each step with their number, and with what gives the progress so far,
            which waits for the device; returns whether to end here, the same on all ranks.
        after_step: may change the engine's parameters after each step (`Method.after_step`).

    Returns:
        The loss curve, the same on all ranks.

    Raises:
        Diverged: when the loss is no longer finite.
    """
    course = Course(data, recipe, schedule, share, resume)
    while not course.is_over:
        take_step(engine, course)
        if after_step is not None:
            after_step(engine)
        course.advance()
        if on_step is not None and on_step(course.step, course.progress):
            break
    return course.points()


def take_step(engine: Engine, course: Course) -> None:
    """Take the next step of one subject."""
    parts = []
    for batch in course.draw():
        prediction = engine(batch.noisy_BCHW, batch.timesteps_B, batch.condition.tensors)
        parts.append(course.loss(batch, prediction))
    engine.step(reduce(add, parts))


class Course:
    """One subject's way through the recipe's steps: what is drawn, its losses, and their curve.

    For each step, once or, where the step fails, again: `draw` the batches, ask for the `loss` of
    each, and after the engine's step `advance`.
    """

    def __init__(
        self,
        data: TrainingData,
        recipe: Recipe,
        schedule: Schedule,
        share: Share = ALONE,
        resume: Progress = Progress(),
    ) -> None:
        self.subject_id, self.step = data.subject_id, resume.step
        """The subject, and the steps taken."""
        self._data, self._recipe, self._schedule, self._share = data, recipe, schedule, share
        self._interval = -(-recipe.steps // MAX_LOSS_POINTS)
        self._curve, self._sums = Curve(resume.curve), LossSums(recipe.prior_weight)
        self._losses: list[tuple[Tensor, Batch]] = []

    @property
    def is_over(self) -> bool:
        """Whether all steps are taken."""
        return self.step >= self._recipe.steps

    def draw(self) -> list[Batch]:
        """Draw the batches of the next step."""
        self._losses.clear()
        return draw_batches(self._data, self._recipe, self._schedule, self.step, self._share)

    def loss(self, batch: Batch, prediction_BCHW: Tensor) -> Tensor:
        """Return the loss of one of these batches, a 0-d tensor."""
        losses_B = losses.row_losses(prediction_BCHW, batch.target_BCHW, self._recipe.huber_c)
        self._losses.append((losses_B.detach(), batch))
        return losses.prior_preservation_loss(losses_B, batch.weights_B)

    def advance(self) -> None:
        """Count the step. Raises Diverged where an earlier loss was not finite."""
        for losses_B, batch in self._losses:
            self._sums.add(losses_B, batch)
        self.step += 1
        if self.step % self._interval == 0 or self.is_over:
            self._curve.add(self._sums.point(self.step, self._share.world_size))

    def progress(self) -> Progress:
        """Return the progress so far. Waits for the device, and raises Diverged."""
        return Progress(self.step, self.points())

    def points(self) -> tuple[LossPoint, ...]:
        """Return the loss curve so far, the same on all ranks; as `progress`."""
        return self._curve.points()
