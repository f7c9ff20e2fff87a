"""Class nouns that make odd prompts are reported, with a fix that works."""

from __future__ import annotations

import pytest
from kit.worlds import write_job

from dbray.planning.checks import check_file


def warnings_of(tmp_path, tiny_base, *nouns):
    subjects = {f"s{number}": noun for number, noun in enumerate(nouns)}
    job = write_job(tmp_path, tiny_base, subjects)
    return [one for one in check_file(job).problems if "class noun" in one.what]


@pytest.mark.parametrize(("noun", "what", "fix"), [
    ("a dog", "prompts would say 'a a dog'", "write 'dog'"),
    ("The dog", "prompts would say 'a The dog'", "write 'dog'"),
    ("dogs", "looks like a plural", "write it in the singular"),
    ("children", "looks like a plural", "write it in the singular"),
    ("a photo of a dog", "is one or two words", "such as 'dog'"),
    ("small white fluffy dog", "is one or two words", "such as 'dog'"),
])  # fmt: skip
def test_a_doubtful_class_noun_is_a_warning(tmp_path, tiny_base, noun, what, fix):
    [warning] = warnings_of(tmp_path, tiny_base, noun, noun)
    assert warning.severity == "warning"
    assert what in warning.what
    assert fix in warning.fix


@pytest.mark.parametrize("noun", [
    "dog", "stuffed animal", "sunglasses", "bus", "glass", "lens", "canvas", "octopus", "iris",
    "one-eyed robot", "theatre", "rhinoceros", "antique vase",
])  # fmt: skip
def test_a_plain_class_noun_gives_no_warning(tmp_path, tiny_base, noun):
    assert warnings_of(tmp_path, tiny_base, noun) == []


def test_class_nouns_with_equal_tokens_are_reported(tmp_path, tiny_base):
    [warning] = warnings_of(tmp_path, tiny_base, "Cat", "dog", "cat")
    assert warning.subject == "s2"
    assert "reads it as 'Cat', and each has class images of its own" in warning.what
    assert warning.fix == "write both as 'cat'"


def test_a_class_that_the_base_does_not_draw_is_a_warning(tmp_path):
    subjects = {"s0": "Dog", "s1": "teddy", "s2": "none", "s3": "drone", "s4": "teddy"}
    [warning] = [one for one in check_file(write_job(tmp_path, "miniature", subjects)).problems
                 if "draws" in one.what]  # fmt: skip
    assert warning.severity == "warning"
    assert "class noun 'drone', 'teddy': the base miniature draws 16 classes: dog" in warning.what
    assert "set base" in warning.fix


def test_a_base_that_lists_no_classes_may_know_any(tmp_path, tiny_base):
    assert warnings_of(tmp_path, tiny_base, "drone") == []
