"""What a job is made of: values that cannot be wrong, and the helpers of those who write them."""

from __future__ import annotations

import pickle

import pytest

from dbray import errors
from dbray.errors import DbrayError, Problem, SpecError
from dbray.spec.sections import Previews, Prior, Recipe, Subject, anchor, fill_prompt, slug


def test_a_sampler_has_room_for_its_steps():
    from diffusers import DDIMScheduler

    for model in (Prior, Previews):
        most = model(steps=999).steps
        with pytest.raises(ValueError, match="999"):
            model(steps=1000)
    scheduler = DDIMScheduler(timestep_spacing="leading", steps_offset=1)
    scheduler.set_timesteps(most)
    assert max(scheduler.timesteps) < scheduler.config.num_train_timesteps


@pytest.mark.parametrize("bad", ["", "Rex", "../rex", "-rex", "a" * 64, "re/x", "rex\n", "ré"])
def test_ids_that_could_leave_their_folder_are_refused(bad):
    with pytest.raises(ValueError, match="id"):
        Subject(id=bad, class_noun="dog", images=())


def test_values_are_frozen():
    recipe = Recipe()
    with pytest.raises(ValueError, match="frozen"):
        recipe.steps = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_a_later_field_is_part_of_the_identity_only_where_it_is_used():
    class Grown(Recipe):
        warmup_steps: int = 0

    assert Grown().identity() == Recipe().identity()
    assert Grown(warmup_steps=5).identity() == Recipe().identity() | {"warmup_steps": 5}


def test_first_fields_are_part_of_the_identity_at_their_defaults_too():
    """So a default may change: whoever relied on the old one gets another fingerprint."""
    assert Recipe().identity().keys() == Recipe.first_fields
    assert Prior().identity().keys() == Prior.first_fields


def test_prompts_are_filled():
    assert fill_prompt("a {subject} and a {class}", "dog", "zb") == "a zb dog and a dog"
    assert fill_prompt("a {subject}", "dog") == "a dog"


@pytest.mark.parametrize("name", ["Rex", "my dog!", "ünï", "a" * 100])
def test_slugs_are_valid_ids(name):
    assert Subject(id=slug(name), class_noun="dog", images=()).id


def test_what_holds_no_letter_gives_no_slug():
    assert slug("...") == slug("日本") == ""


def test_anchor(tmp_path):
    assert anchor("x/y", tmp_path) == str(tmp_path / "x" / "y")
    assert anchor("gs://b/x", tmp_path) == "gs://b/x"


def test_every_error_survives_a_process_border():
    classes = [value for value in vars(errors).values()
               if isinstance(value, type) and issubclass(value, DbrayError)]  # fmt: skip
    assert len(classes) > 10
    for error_class in classes:
        problem = Problem("error", "here", "is wrong", "mend it")
        error = error_class([problem] if error_class is SpecError else "what happened")
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is error_class
        assert str(again) == str(error)
        assert again.exit_code in {1, 2, 3, 4}
