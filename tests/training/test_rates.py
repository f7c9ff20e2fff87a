"""Learning rates at each step."""

from __future__ import annotations

import pytest
import torch

from dbray.spec.recipe import Recipe
from dbray.training.rates import Rate


def rates_of(rate: Rate, recipe: Recipe) -> list[float]:
    return [rate.at(step, recipe) for step in range(recipe.steps)]


@pytest.mark.parametrize(("schedule", "expected"), [
    ("constant", [1, 2, 3, 3, 3, 3, 3]),
    ("linear", [1, 2, 3, 3, 2.25, 1.5, 0.75]),
    ("cosine", [1, 2, 3, 3, 2.56066, 1.5, 0.43934]),
])  # fmt: skip
def test_rates_rise_in_the_warm_up_and_follow_the_schedule(schedule, expected):
    found = rates_of(Rate(3.0, schedule), Recipe(steps=7, warmup_steps=3))
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_rates_without_a_warm_up_equal_those_of_diffusers(schedule):
    from diffusers.optimization import get_scheduler

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    reference = get_scheduler(schedule, optimizer, num_warmup_steps=0, num_training_steps=9)
    theirs = []
    for _ in range(9):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    assert rates_of(Rate(0.3, schedule), Recipe(steps=9)) == pytest.approx(theirs)


def test_a_constant_rate_without_a_warm_up_is_exactly_its_start():
    assert rates_of(Rate(5e-6), Recipe(steps=3)) == [5e-6] * 3


def test_a_warm_up_may_be_longer_than_the_steps():
    recipe = Recipe(steps=2, warmup_steps=4, rate_schedule="cosine")
    assert rates_of(Rate(1.0, "cosine"), recipe) == [0.25, 0.5]
