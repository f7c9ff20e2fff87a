"""Mistakes in files that users write, told in the files' own terms."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from dbray.errors import SpecError
from dbray.spec import findings
from dbray.spec.job import Job


def mistakes(data, model=Job) -> list[tuple[str, str]]:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(data)
    return [(one.what, one.fix) for one in findings.problems_of(caught.value, "file", model=model)]


@pytest.mark.parametrize("storage", ["ftp://u:SECRET@h", "ftp://u:" + "SECRET" * 30 + "@h"])
def test_a_refused_value_is_shown_without_its_secrets_however_long(storage):
    [(_, fix)] = mistakes({"base": "miniature", "subjects": "x", "storage": storage})
    assert "ftp://***@h" in fix
    [(what, _)] = mistakes({"base": "miniature", "subjects": "x", "id": storage})
    assert "ftp://***@h" in what
    [(what, _)] = mistakes({"base": "miniature", "subjects": "x", "recipe": storage})
    assert "ftp://***@h" in what


def test_keys_with_spaces_are_named_as_they_were_written():
    job = {"base": "miniature", "subjects": 5, "base revision": "x", "recipe": {"learning rate": 1}}
    found = dict(mistakes(job))
    assert found.keys() == {
        "subjects: should hold a list, and not 5",
        "base revision: is no known key",
        "recipe.learning rate: is no known key",
    }
    assert "write 'base_revision' instead" in found["base revision: is no known key"]
    assert "write 'learning_rate' instead" in found["recipe.learning rate: is no known key"]


@pytest.mark.parametrize("twice", ["[*a{0}, *a{0}]", "{{<<: [*a{0}, *a{0}]}}"])
def test_aliases_are_refused_before_they_multiply(twice):
    """Each line stands for twice what the one before it does."""
    lines = ["- &a0 {x: 1}", *(f"- &a{n + 1} {twice.format(n)}" for n in range(12))]
    with pytest.raises(SpecError) as caught:
        findings.parse_yaml("\n".join(lines), "a.yaml")
    [problem] = caught.value.problems
    assert problem.where.startswith("a.yaml:2:")
    assert "alias *a0" in problem.what
    assert "write out" in problem.fix


def test_what_is_not_told_twice_may_have_an_anchor():
    data, lines = findings.parse_yaml("steps: &n 1\nname: '*n'\n", "a.yaml")
    assert (data, lines[("name",)]) == ({"steps": 1, "name": "*n"}, 2)
