"""The prior without class images: the untouched base teaches what the class prompt means.

A class row is a photograph of the subject, noised as any row, under the class prompt. Its target is
what the untouched base predicts of it: so the class prompt has to go on meaning what it meant, just
where the subject's own rows pull, and nothing is sampled and nothing stored.

The untouched base is the network before its first step. So all steps' predictions, the lessons, are
made then: by every method in the same way and without a second copy of any weights. They are kept
in memory of the CPU, and `lesson_bytes` says how much of it.

Sources: Li and Hoiem 2016 (arXiv 1606.09282), learning without forgetting: the targets are the old
network's answers to the new task's inputs; Ostris' ai-toolkit, "differential output preservation":
the same with the subject's photographs and the class word in place of its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from dbray.bases.schedule import Schedule
from dbray.spec.recipe import Recipe
from dbray.training.batches import Share, draw_batches
from dbray.training.data import TrainingData
from dbray.training.engine import Engine

_FLOAT_BYTES = 4


@torch.no_grad()
def teach(  # noqa: PLR0913 - as `finetune`
    engine: Engine,
    schedule: Schedule,
    data: TrainingData,
    recipe: Recipe,
    *,
    share: Share,
    first: int = 0,
    after_lesson: Callable[[], None] | None = None,
) -> TrainingData:
    """Give a subject's data class rows, of its own photographs, and this rank's lessons for them.

    Args:
        engine: holds the base's weights. Ranks make the same calls.
        schedule: as in `finetune`.
        data: the encoded subject, without a prior.
        recipe: the resolved recipe.
        share: this rank's part of every batch.
        first: the step to begin with.
        after_lesson: called after each step's lesson; may raise to stop.
    """
    data, lessons = replace(data, prior=data.views), {}
    for step in range(first, recipe.steps):
        [batch] = draw_batches(data, recipe, schedule, step, share)
        # A rank without class rows asks about its other rows: the ranks of ZeRO call together.
        rows = slice(-batch.num_prior or None, None)
        condition = batch.condition[rows].tensors
        answer = engine(batch.noisy_BCHW[rows], batch.timesteps_B[rows], condition)
        lessons[step] = answer[: batch.num_prior].cpu()
        if after_lesson is not None:
            after_lesson()
    return replace(data, lessons=lessons)


def lesson_bytes(recipe: Recipe, latent_shape: tuple[int, int, int], world_size: int) -> int:
    """Memory of the CPU that the lessons of a subject take on the rank that has the most."""
    num_instance = recipe.batch_size
    shares = [Share(rank, world_size).rows(2 * num_instance) for rank in range(world_size)]
    most = max(sum(row >= num_instance for row, _ in rows) for rows in shares)
    return recipe.steps * most * math.prod(latent_shape) * _FLOAT_BYTES
