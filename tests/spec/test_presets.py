"""Presets: recipes by name."""

from __future__ import annotations

import pytest

from dbray.errors import SpecError
from dbray.spec.presets import PRESETS
from dbray.spec.recipe import Recipe
from dbray.spec.sections import Previews, Prior


@pytest.mark.parametrize("name", PRESETS)
def test_the_values_of_a_preset_are_valid_and_its_source_is_given(name):
    preset = PRESETS[name]
    assert preset.source
    for section, model in (("recipe", Recipe), ("prior", Prior), ("previews", Previews)):
        model.model_validate(dict(preset.values(section)))


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(SpecError, match="unknown preset 'fast'; the presets are: paper, stable-d"):
        Recipe(preset="fast")


def test_a_preset_of_another_method_is_rejected():
    with pytest.raises(
        ValueError, match="preset hackathon is of the method full, and method is lo"
    ):
        Recipe.model_validate({"preset": "hackathon", "method": "lora"})
    settings = {"kind": "lora", "rank": 4}
    assert Recipe.model_validate({"preset": "lora", "method": settings}).preset == "lora"
