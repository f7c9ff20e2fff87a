"""Placeholders of prompts."""

from __future__ import annotations

import pytest

from dbray.spec.prompts import NO_NOUN, fill_prompt, has_an
from dbray.spec.subject import Subject


def test_placeholders_of_prompts_are_filled():
    assert fill_prompt("a {subject} and a {class}", "dog", "zb") == "a zb dog and a dog"
    assert fill_prompt("a {subject}", "dog") == "a dog"


@pytest.mark.parametrize("noun", [
    "elephant", "owl", "umbrella", "hourglass", "antique vase", "urn", "Alpaca",
    "uninflated balloon",
])  # fmt: skip
def test_the_article_agrees_with_a_class_noun_that_begins_with_a_vowel_sound(noun):
    assert fill_prompt("a {class}", noun) == f"an {noun}"
    assert fill_prompt("A photo of a {subject}", noun) == f"A photo of an {noun}"
    assert (
        fill_prompt("a {subject} beside a {class}", noun, "zb") == f"a zb {noun} beside an {noun}"
    )
    assert fill_prompt("panda {class}, the {class}", noun) == f"panda {noun}, the {noun}"
    assert has_an("a {subject} beside a {class}", noun)
    assert not has_an("a {subject}", noun)


@pytest.mark.parametrize("noun", [
    "dog", "unicorn", "university", "euro", "one-eyed robot", "ukulele", "utensil", "ufo", "horse",
    "hat", "uniform",
])  # fmt: skip
def test_other_articles_stay(noun):
    assert fill_prompt("a {class} and a {subject}", noun) == f"a {noun} and a {noun}"
    assert not has_an("a {class}", noun)


@pytest.mark.parametrize(("prompt", "identifier", "expected"), [
    ("a {subject}", "zb", "a zb"),
    ("a {subject} beside a {class}", "zb", "a zb beside a thing"),
    ("a {subject} asleep", None, "a thing asleep"),
])  # fmt: skip
def test_without_a_class_noun_the_identifier_stands_alone(prompt, identifier, expected):
    assert fill_prompt(prompt, NO_NOUN, identifier) == expected
    assert not has_an(prompt, NO_NOUN)


@pytest.mark.parametrize(("fields", "ablation"), [
    ({"class_noun": "dog"}, None),
    ({"class_noun": "dog", "true_class_noun": "dog"}, None),
    ({"class_noun": "None"}, "no class noun"),
    ({"class_noun": "cat", "true_class_noun": "dog"}, "the class noun cat in place of dog"),
])  # fmt: skip
def test_a_class_noun_that_is_wrong_on_purpose_is_an_ablation(fields, ablation):
    assert Subject(id="rex", images=(), **fields).ablation == ablation
