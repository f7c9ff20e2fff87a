"""Ids are made from any text with letters."""

from __future__ import annotations

import pytest

from dbray.spec.canon import slug
from dbray.spec.subject import Subject


@pytest.mark.parametrize("name", ["Rex", "my dog!", "ünï", "a" * 100])
def test_slugs_are_valid_ids(name):
    assert Subject(id=slug(name), class_noun="dog", images=()).id


def test_a_text_without_letters_gives_no_slug():
    assert slug("...") == slug("日本") == ""
