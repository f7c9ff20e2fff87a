"""One subject's training loop: encoded rows in, loss curve out; the weights stay in the engine.

Owns what a step's batch is. Every random number comes from a generator named by (seed, subject id,
step, row), so a run that starts again at step k continues bit for bit, and neither rank nor
neighbours matter. Knows neither Ray nor storage nor model families.

Shape suffixes: V views, K class images, B rows, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from dbray.bases import Backbone
from dbray.bases.condition import Condition
from dbray.bases.schedule import Schedule
from dbray.errors import Diverged
from dbray.spec.prompts import fill_prompt
from dbray.spec.sections import Recipe
from dbray.training import losses
from dbray.training.engine import Engine
from dbray.training.stopping import FidelityPoint

T = TypeVar("T")
Row: TypeAlias = tuple[Tensor, Tensor, Tensor, Condition]
"""Latents, noise, timestep and condition of one row."""

MAX_LOSS_POINTS = 200
"""Points that a published loss curve holds at most."""


@dataclass(frozen=True)
class Latents:
    """Images as the autoencoder sees them: mean and standard deviation, sampled each step."""

    mean_VCHW: Tensor | Sequence[Tensor]
    std_VCHW: Tensor | Sequence[Tensor]
    """Lists where images have different sizes."""

    def sample(self, index: int, generator: torch.Generator) -> Tensor:
        """Draw the latents (C, H, W) of one image from its posterior."""
        mean_CHW = self.mean_VCHW[index]
        noise_CHW = torch.randn(mean_CHW.shape, generator=generator)
        return mean_CHW + self.std_VCHW[index] * noise_CHW

    def __len__(self) -> int:
        return len(self.mean_VCHW)


@dataclass(frozen=True)
class TrainingData:
    """All that one subject's steps draw from, encoded once."""

    subject_id: str
    views: Latents
    views_of_image: tuple[tuple[int, ...], ...]
    instance: Condition
    """Of each image's prompt; rows as `views_of_image`."""
    prior: Latents | None
    """Latents of the class rows; None trains without prior preservation."""
    prior_prompt: Condition
    """Of the prompt of the class rows, one row."""
    lessons: Mapping[int, Tensor] = field(default_factory=dict)
    """Targets of this rank's class rows by step, if not the schedule's: see `teacher`."""
    photographs: tuple[np.ndarray, ...] = ()
    """One crop of each image, uint8 HWC."""


@dataclass(frozen=True)
class LossPoint:
    """Mean losses of the rows over the steps since the point before; `step` counts from 1.

    Where a checkpoint between two points was continued, over the steps since the checkpoint. `loss`
    is instance_loss + lambda * prior_loss, without the weights of timesteps.
    """

    step: int
    loss: float
    instance_loss: float
    prior_loss: float


@dataclass(frozen=True)
class Progress:
    """How far a subject is: steps taken, and the loss curve so far.

    Where training may stop early, also the fidelity curve, and the best weights of rank 0.
    """

    step: int = 0
    curve: tuple[LossPoint, ...] = ()
    fidelity: tuple[FidelityPoint, ...] = ()
    best: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Share:
    """Which rows of a batch this rank computes."""

    rank: int = 0
    world_size: int = 1

    def rows(self, num_rows: int) -> list[tuple[int, float]]:
        """Rows of this rank, each with the factor that makes the mean over ranks the whole sum.

        With more ranks than rows, several ranks compute one row and share its weight.
        """
        if self.world_size <= num_rows:
            mine = range(self.rank, num_rows, self.world_size)
            return [(row, float(self.world_size)) for row in mine]
        row = self.rank % num_rows
        copies = len(range(row, self.world_size, num_rows))
        return [(row, self.world_size / copies)]

    def gather(self, mine: T) -> list[T]:
        """What every rank says, by rank. All ranks make the same calls."""
        found = [mine] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(found, mine)
        return found

    def of_first(self, mine: T) -> T:
        """What rank 0 says, for all."""
        box = [mine]
        if self.world_size > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]


def encode_subject(
    backbone: Backbone, views: Sequence[Sequence[np.ndarray]], recipe: Recipe
) -> tuple[Latents, tuple[tuple[int, ...], ...]]:
    """Encode every view of every image once.

    Args:
        backbone: the base with its own weights.
        views: of each image, its crops (uint8 HWC, of different sizes with `crop: bucket`).
        recipe: says whether mirrored views are added.

    Returns:
        The latents of all views, and for each image the indices of its views.
    """
    pixels: list[np.ndarray] = []
    views_of_image = []
    for crops in views:
        of_image = [*crops, *(crop[:, ::-1] for crop in crops)] if recipe.flip else list(crops)
        views_of_image.append(tuple(range(len(pixels), len(pixels) + len(of_image))))
        pixels.extend(of_image)
    return _encode(backbone, pixels), tuple(views_of_image)


def _encode(backbone: Backbone, pixels: Sequence[np.ndarray]) -> Latents:
    """Encode images, those of one size together."""
    groups = _groups([image.shape for image in pixels])
    if len(groups) == 1:
        return Latents(*backbone.encode(np.stack(pixels)))
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for group in groups:
        means, deviations = backbone.encode(np.stack([pixels[index] for index in group]))
        found |= dict(zip(group, zip(means, deviations, strict=True), strict=True))
    both = [found[index] for index in range(len(pixels))]
    return Latents([mean for mean, _ in both], [deviation for _, deviation in both])


def _groups(shapes: Sequence[Hashable]) -> list[list[int]]:
    """Indices of equal shapes, in the order in which they first appear."""
    return [[i for i, one in enumerate(shapes) if one == shape] for shape in dict.fromkeys(shapes)]


def instance_prompts(
    identifier: str,
    class_noun: str,
    captions: Sequence[str] | None,
    recipe: Recipe,
    num_images: int,
) -> list[str]:
    """One prompt per image: its caption or, without captions, the recipe's prompt."""
    templates = captions or [recipe.prompt] * num_images
    return [fill_prompt(template, class_noun, identifier) for template in templates]


def finetune(  # noqa: PLR0913 - what a step needs, and where to begin
    engine: Engine,
    schedule: Schedule,
    data: TrainingData,
    recipe: Recipe,
    *,
    share: Share = Share(),
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


@dataclass(frozen=True)
class Batch:
    """The rows of one step that one rank computes, on the device; class rows come last."""

    noisy_BCHW: Tensor
    timesteps_B: Tensor
    condition: Condition
    target_BCHW: Tensor
    weights_B: Tensor
    is_prior_B: Tensor
    num_prior: int


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
        share: Share = Share(),
        resume: Progress = Progress(),
    ) -> None:
        self.subject_id, self.step = data.subject_id, resume.step
        """The subject, and the steps taken."""
        self._data, self._recipe, self._schedule, self._share = data, recipe, schedule, share
        self._interval = -(-recipe.steps // MAX_LOSS_POINTS)
        self._curve, self._sums = _Curve(resume.curve), _LossSums(recipe.prior_weight)
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


def draw_batches(
    data: TrainingData, recipe: Recipe, schedule: Schedule, step: int, share: Share
) -> list[Batch]:
    """Draw the rows of one step: `batch_size` instance rows, and as many class rows.

    They are one batch if their images have one size, else one for each size.
    """
    num_instance = recipe.batch_size
    num_rows = num_instance if data.prior is None else 2 * num_instance
    is_prior = torch.arange(num_rows) >= num_instance
    shares = share.rows(num_rows)
    mine = torch.tensor([row for row, _ in shares])
    factors = torch.tensor([factor for _, factor in shares])
    weights = losses.row_weights(is_prior, recipe.prior_weight)[mine] * factors
    rows = [
        _draw_row(data, recipe, bool(is_prior[row]), schedule,
                  losses.generator_of(recipe.seed, data.subject_id, step, row))
        for row, _ in shares
    ]  # fmt: skip
    return [
        _batch_of(
            [rows[i] for i in group],
            weights[group],
            is_prior[mine][group],
            schedule,
            recipe,
            data.lessons.get(step),
        )
        for group in _groups([latents.shape for latents, *_ in rows])
    ]


def _batch_of(
    rows: Sequence[Row], weights: Tensor, is_prior: Tensor, schedule: Schedule, recipe: Recipe,
    lesson: Tensor | None,
) -> Batch:  # fmt: skip
    """Put rows together, on the device of the schedule. A lesson is the class rows' target."""
    device = schedule.device
    *columns, conditions = zip(*rows, strict=True)
    latents, noise, timesteps = (_send(torch.stack(column), device) for column in columns)
    weights = _send(weights, device)
    if (emphasis := schedule.weights(timesteps, recipe)) is not None:
        weights = weights * emphasis
    num_prior = int(is_prior.sum())
    target = schedule.target(latents, noise, timesteps)
    if lesson is not None:
        target = torch.cat([target[: len(target) - num_prior], _send(lesson, device)])
    return Batch(
        noisy_BCHW=schedule.add_noise(latents, noise, timesteps),
        timesteps_B=timesteps,
        condition=Condition.stack(conditions).to(device),
        target_BCHW=target,
        weights_B=weights,
        is_prior_B=_send(is_prior, device),
        num_prior=num_prior,
    )


def _send(tensor: Tensor, device: torch.device) -> Tensor:
    """Bring to the device. From pageable memory, that would wait for all that a GPU has to do."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _draw_row(
    data: TrainingData,
    recipe: Recipe,
    is_prior: bool,
    schedule: Schedule,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor, Condition]:
    """Draw latents, noise, timestep and condition of one row."""
    if is_prior:
        assert data.prior is not None
        latents = data.prior.sample(_draw(len(data.prior), generator), generator)
        condition = data.prior_prompt[0]
    else:
        image = _draw(len(data.views_of_image), generator)
        views = data.views_of_image[image]
        latents = data.views.sample(views[_draw(len(views), generator)], generator)
        condition = data.instance[image]
    noise = torch.randn(latents.shape, generator=generator)
    timestep = schedule.draw(generator, recipe)
    noise = losses.offset_noise(noise, recipe.noise_offset, generator)
    return latents, noise, timestep, condition


def _draw(size: int, generator: torch.Generator) -> int:
    return int(torch.randint(size, (), generator=generator))


class _Reading:
    """A loss point on its way from the device."""

    def __init__(self, step: int, sums: Tensor, prior_weight: float) -> None:
        self._step, self._prior_weight = step, prior_weight
        self._sums = sums.to("cpu", non_blocking=True)
        self._arrival = None
        if sums.device.type != "cpu":
            self._arrival = torch.Event(sums.device)
            self._arrival.record()

    def point(self) -> LossPoint:
        """Wait for it. Raises Diverged where it is not finite."""
        if self._arrival is not None:
            self._arrival.synchronize()
        instance, prior = (self._sums[:2] / self._sums[2:].clamp(min=1)).tolist()
        loss = instance + self._prior_weight * prior
        if not math.isfinite(loss):
            raise Diverged(f"the loss is {loss} at step {self._step}; lower learning_rate, or use "
                           "precision fp32")  # fmt: skip
        return LossPoint(self._step, loss, instance, prior)


class _Curve:
    """The loss curve as it grows. A point is read when the next is there: no step waits for it."""

    def __init__(self, points: Sequence[LossPoint]) -> None:
        self._points = list(points)
        self._coming: _Reading | None = None

    def add(self, reading: _Reading) -> None:
        self._settle()
        self._coming = reading

    def points(self) -> tuple[LossPoint, ...]:
        self._settle()
        return tuple(self._points)

    def _settle(self) -> None:
        if self._coming is not None:
            self._points.append(self._coming.point())
        self._coming = None


class _LossSums:
    """Sums of the rows' losses since the last point."""

    def __init__(self, prior_weight: float) -> None:
        self._prior_weight = prior_weight
        self._sums: Tensor | None = None
        self._rows = torch.zeros(2)

    def add(self, losses_B: Tensor, batch: Batch) -> None:
        is_prior = batch.is_prior_B
        kinds = torch.stack([(losses_B * ~is_prior).sum(), (losses_B * is_prior).sum()])
        self._sums = kinds if self._sums is None else self._sums + kinds
        self._rows += torch.tensor([len(losses_B) - batch.num_prior, batch.num_prior])

    def point(self, step: int, world_size: int) -> _Reading:
        """Mean of both kinds over all ranks; starts anew."""
        assert self._sums is not None
        both = torch.cat([self._sums, _send(self._rows, self._sums.device)])
        if world_size > 1:
            dist.all_reduce(both)
        self._sums, self._rows = None, torch.zeros(2)
        return _Reading(step, both, self._prior_weight)
