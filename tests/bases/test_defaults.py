"""Where each value of a job comes from."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dbray import bases
from dbray.bases.defaults import fill
from dbray.bases.families import FAMILIES, family_of
from dbray.spec.recipe import Recipe
from dbray.spec.sections import Previews, Prior


@pytest.fixture(scope="module")
def base(tiny_base):
    return bases.resolve(str(tiny_base))


def found_in(base, recipe, field):
    filled = fill(base, recipe, recipe.preset)
    return getattr(filled.section, field), filled.sources[field]


def test_the_order_of_sources_is_job_preset_base_family_dbray(base):
    base = replace(base, name="own", defaults={
        "recipe": {"learning_rate": 3e-3, "batch_size": 3, "seed": 3},
        "methods": {"full": {"learning_rate": 2e-3}, "lora": {"learning_rate": 1e-3}},
    })  # fmt: skip
    job = Recipe(steps=1, preset="hackathon")
    assert found_in(base, job, "steps") == (1, "the job")
    assert found_in(base, job, "learning_rate") == (2e-6, "preset hackathon")
    plain = Recipe(steps=1)
    assert found_in(base, plain, "learning_rate") == (2e-3, "own for full")
    assert found_in(base, plain, "batch_size") == (3, "own")
    assert found_in(base, plain, "resolution") == (32, "own")
    assert found_in(base, plain, "flip") == (False, "dbray")
    lora = Recipe.model_validate({"method": "lora"})
    assert found_in(base, lora, "learning_rate") == (1e-3, "own for lora")
    family = "Stable Diffusion 1.x or 2.x for lora"
    assert found_in(base, lora, "steps") == (500, family)
    assert found_in(replace(base, defaults={}), lora, "learning_rate") == (1e-4, family)


def test_a_preset_may_set_the_method_prior_and_previews(base):
    recipe = Recipe(preset="lora", steps=300)
    filled = fill(base, recipe, "lora").section
    assert (filled.method.kind, filled.learning_rate, filled.steps) == ("lora", 1e-4, 300)
    assert filled.preset is None
    assert fill(base, Prior(), "campus").section.count == 12
    assert fill(base, Prior(count=3), "campus").section.count == 3
    assert fill(base, Previews(), "hackathon").section.guidance == 9.0
    assert fill(base, Previews(), "hackathon").sources["guidance"] == "preset hackathon"


def test_a_base_may_recommend_a_method(base):
    base = replace(base, defaults={"recipe": {"method": {"kind": "lora", "rank": 2}}})
    filled = fill(base, Recipe()).section
    assert (filled.method.kind, filled.learning_rate) == ("lora", 1e-4)
    other = fill(base, Recipe.model_validate({"method": "full"})).section
    assert (other.method.kind, other.learning_rate) == ("full", 5e-6)


def test_empty_values_of_the_user_stay_empty_except_the_resolution(base):
    base = replace(base, defaults={"recipe": {"min_snr_gamma": 1.0}})
    filled = fill(base, Recipe(min_snr_gamma=None, resolution=None)).section
    assert (filled.min_snr_gamma, filled.resolution) == (None, 32)


def test_filling_a_filled_section_changes_nothing(base):
    once = fill(base, Recipe(preset="lora")).section
    assert fill(base, once).section == once


def test_a_full_recipe_on_stable_diffusion_equals_that_of_the_first_version(base):
    assert fill(base, Recipe()).section.identity() == Recipe(resolution=32).identity()


RATES = {
    "StableDiffusionPipeline": (1e-4, 0, 500),
    "StableDiffusionXLPipeline": (1e-4, 0, 500),
    "StableDiffusion3Pipeline": (4e-4, 0, 500),
    "FluxPipeline": (1e-4, 0, 500),
    "Flux2KleinPipeline": (1e-4, 100, 500),
    "ZImagePipeline": (1e-4, 100, 500),
    "IFPipeline": (5e-6, 0, 1200),
    "IFSuperResolutionPipeline": (1e-6, 0, 2000),
    "StableDiffusionUpscalePipeline": (1e-4, 0, 500),
    "QwenImagePipeline": (2e-4, 0, 500),
}
"""Of LoRA in diffusers' scripts: rate, warm-up and steps."""


@pytest.mark.parametrize("pipeline", FAMILIES)
def test_every_family_has_a_recipe_for_each_method(pipeline):
    recipes = family_of(pipeline).recipes
    assert set(recipes) == {"full", "lora", "pivotal", "textual_inversion"}
    for method in recipes:
        Recipe.model_validate({"method": method, **recipes[method]})
    lora = Recipe.model_validate(recipes["lora"])
    assert (lora.learning_rate, lora.warmup_steps, lora.steps) == RATES[pipeline]
    assert recipes["textual_inversion"]["learning_rate"] > 100 * Recipe().learning_rate
