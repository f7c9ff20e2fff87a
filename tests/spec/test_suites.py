"""Suites of prompts: variants, articles, and their use by name."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from dbray.miniature.world import CREATURES, OBJECTS
from dbray.spec.prompts import check_template, fill_prompt
from dbray.spec.sections import Previews, Scoring
from dbray.spec.suites import SUITES, is_living


@pytest.mark.parametrize("name", SUITES)
def test_every_prompt_names_the_subject_once_and_is_there_once(name):
    for prompts in (SUITES[name].objects, SUITES[name].live):
        assert len(set(prompts)) == len(prompts)
        for prompt in prompts:
            check_template(prompt, allowed=("{subject}",), required="{subject}")
            assert prompt.count("{subject}") == 1


def test_the_applications_of_the_paper_are_there():
    assert "a cross of a {subject} and an elephant" in SUITES["properties"].live
    assert "a {subject} made of glass" in SUITES["properties"].objects
    assert "a {subject} seen from the back" in SUITES["novel-views"].live
    assert "a {subject} in a police outfit" in SUITES["accessories"].live


@pytest.mark.parametrize("name", SUITES)
def test_articles_agree_with_the_noun_after_them(name):
    for prompt in (*SUITES[name].objects, *SUITES[name].live):
        filled = fill_prompt(prompt, "owl").lower()
        assert " a owl" not in f" {filled}"
        for vowel in "aeio":
            assert f" a {vowel}" not in f" {filled}"


def test_the_benchmark_has_25_prompts_of_each_kind():
    assert len(SUITES["dreambench"].objects) == len(SUITES["dreambench"].live) == 25


def test_the_class_noun_chooses_the_variant():
    assert is_living("dog")
    assert is_living("Corgi Dog")
    assert not is_living("dog toy")
    assert not is_living("stuffed animal toy")
    assert not is_living("123")
    accessories = SUITES["accessories"]
    assert accessories.prompts_for("cat") == accessories.live
    assert accessories.prompts_for("vase") == accessories.objects


def test_the_miniature_s_nouns_are_sorted_right():
    assert all(is_living(noun) for noun in CREATURES)
    assert not any(is_living(noun) for noun in OBJECTS)


def test_names_of_suites_stand_for_their_prompts_in_a_job():
    chosen = Previews.model_validate({"prompts": ["novel-views", "a {subject}"]})
    assert chosen.prompts == (*SUITES["novel-views"].live, "a {subject}")
    scoring = Scoring.model_validate({"prompts": "accessories-objects"})
    assert scoring.prompts == SUITES["accessories"].objects


def test_a_suite_with_variants_needs_one():
    with pytest.raises(ValidationError, match="write accessories-objects or accessories-live"):
        Previews.model_validate({"prompts": ["accessories"]})


def test_prompts_without_the_class_alone_cannot_show_that_it_is_kept():
    with pytest.raises(ValidationError, match="no prompt contains"):
        Scoring.model_validate({"class_prompts": ["a car"]})
