"""Mistakes in files that users write are reported in the terms of the file."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from dbray.errors import SpecError
from dbray.spec.job import Job
from dbray.spec.problems import problems_of
from dbray.spec.text_files import parse_yaml


def mistakes(data, model=Job) -> list[tuple[str, str]]:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(data)
    return [(one.what, one.fix) for one in problems_of(caught.value, "file", model=model)]


@pytest.mark.parametrize("storage", ["ftp://u:SECRET@h", "ftp://u:" + "SECRET" * 30 + "@h"])
def test_an_invalid_value_of_any_length_is_shown_without_secrets(storage):
    [(_, fix)] = mistakes({"base": "miniature", "subjects": "x", "storage": storage})
    assert "ftp://***@h" in fix
    [(what, _)] = mistakes({"base": "miniature", "subjects": "x", "id": storage})
    assert "ftp://***@h" in what
    [(what, _)] = mistakes({"base": "miniature", "subjects": "x", "recipe": storage})
    assert "ftp://***@h" in what


def test_keys_with_spaces_are_reported_as_written():
    job = {"base": "miniature", "subjects": 5, "base revision": "x", "recipe": {"learning rate": 1}}
    found = dict(mistakes(job))
    assert found.keys() == {
        "subjects: must be a list, not 5",
        "base revision: unknown key",
        "recipe.learning rate: unknown key",
    }
    assert "write 'base_revision' instead" in found["base revision: unknown key"]
    assert "write 'learning_rate' instead" in found["recipe.learning rate: unknown key"]


@pytest.mark.parametrize("twice", ["[*a{0}, *a{0}]", "{{<<: [*a{0}, *a{0}]}}"])
def test_aliases_are_rejected_before_they_expand(twice):
    """Each line expands to twice as much as the one before."""
    lines = ["- &a0 {x: 1}", *(f"- &a{n + 1} {twice.format(n)}" for n in range(12))]
    with pytest.raises(SpecError) as caught:
        parse_yaml("\n".join(lines), "a.yaml")
    [problem] = caught.value.problems
    assert problem.where.startswith("a.yaml:2:")
    assert "alias *a0" in problem.what
    assert "write its value out" in problem.fix


def test_an_anchor_without_an_alias_is_accepted():
    data, lines = parse_yaml("steps: &n 1\nname: '*n'\n", "a.yaml")
    assert (data, lines[("name",)]) == ({"steps": 1, "name": "*n"}, 2)
