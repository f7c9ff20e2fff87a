"""Sections of a job: invalid values cannot be made."""

from __future__ import annotations

import pytest

from dbray.errors import SpecError
from dbray.spec.recipe import Recipe
from dbray.spec.sections import Previews, Prior
from dbray.spec.subject import Subject


def test_the_steps_of_each_sampler_have_a_limit():
    from diffusers import DDIMScheduler

    for model in (Prior, Previews):
        most = model(steps=999).steps
        with pytest.raises(SpecError, match="999"):
            model(steps=1000)
    scheduler = DDIMScheduler(timestep_spacing="leading", steps_offset=1)
    scheduler.set_timesteps(most)
    assert max(scheduler.timesteps) < scheduler.config.num_train_timesteps


@pytest.mark.parametrize("bad", ["", "Rex", "../rex", "-rex", "a" * 64, "re/x", "rex\n", "ré"])
def test_ids_that_could_leave_their_folder_are_rejected(bad):
    with pytest.raises(SpecError, match="id"):
        Subject(id=bad, class_noun="dog", images=())


def test_values_are_frozen():
    recipe = Recipe()
    with pytest.raises(ValueError, match="frozen"):
        recipe.steps = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_a_later_field_is_part_of_the_identity_only_if_set():
    class Grown(Recipe):
        warmup_steps: int = 0

    assert Grown().identity() == Recipe().identity()
    assert Grown(warmup_steps=5).identity() == Recipe().identity() | {"warmup_steps": 5}


def test_default_values_of_first_fields_are_part_of_the_identity():
    """So a default may change: a job that used the old one gets another fingerprint."""
    assert Recipe().identity().keys() == Recipe.first_fields
    assert Prior().identity().keys() == Prior.first_fields
