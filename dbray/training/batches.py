"""What the batch of a step is, and which rows of it a rank computes.

Every random number comes from a generator named by (seed, subject id, step, row), so a run that
starts again at step k continues bit for bit, and neither rank nor neighbours matter.

Shape suffixes: B rows, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from dbray.bases.condition import Condition
from dbray.bases.schedule import Schedule
from dbray.spec.recipe import Recipe
from dbray.training import losses
from dbray.training.data import TrainingData, groups_of

T = TypeVar("T")


Row: TypeAlias = tuple[Tensor, Tensor, Tensor, Condition]
"""Latents, noise, timestep and condition of one row."""


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


ALONE = Share()
"""The share of the only rank."""


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
        for group in groups_of([latents.shape for latents, *_ in rows])
    ]


def _batch_of(
    rows: Sequence[Row], weights: Tensor, is_prior: Tensor, schedule: Schedule, recipe: Recipe,
    lesson: Tensor | None,
) -> Batch:  # fmt: skip
    """Put rows together, on the device of the schedule. A lesson is the class rows' target."""
    device = schedule.device
    *columns, conditions = zip(*rows, strict=True)
    latents, noise, timesteps = (send(torch.stack(column), device) for column in columns)
    weights = send(weights, device)
    if (emphasis := schedule.weights(timesteps, recipe)) is not None:
        weights = weights * emphasis
    num_prior = int(is_prior.sum())
    target = schedule.target(latents, noise, timesteps)
    if lesson is not None:
        target = torch.cat([target[: len(target) - num_prior], send(lesson, device)])
    return Batch(
        noisy_BCHW=schedule.add_noise(latents, noise, timesteps),
        timesteps_B=timesteps,
        condition=Condition.stack(conditions).to(device),
        target_BCHW=target,
        weights_B=weights,
        is_prior_B=send(is_prior, device),
        num_prior=num_prior,
    )


def send(tensor: Tensor, device: torch.device) -> Tensor:
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
        images, index, text = data.prior, _draw(len(data.prior), generator), data.prior_prompt[0]
    else:
        image = _draw(len(data.views_of_image), generator)
        views = data.views_of_image[image]
        images, index = data.views, views[_draw(len(views), generator)]
        text = data.instance[image]
    latents = images.sample(index, generator)
    noise = torch.randn(latents.shape, generator=generator)
    timestep = schedule.draw(generator, recipe)
    noise = losses.offset_noise(noise, recipe.noise_offset, generator)
    return latents, noise, timestep, images.condition(text, index, generator)


def _draw(size: int, generator: torch.Generator) -> int:
    return int(torch.randint(size, (), generator=generator))
