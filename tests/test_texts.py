"""Mistakes in files that users write, told in the files' own terms."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from dbray import texts
from dbray.jobfile import Job


def mistakes(data, model=Job) -> list[tuple[str, str]]:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(data)
    return [(one.what, one.fix) for one in texts.problems_of(caught.value, "file", model=model)]


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
