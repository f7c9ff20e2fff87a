"""The layout of previews: written files are read back."""

from __future__ import annotations

import pytest

from dbray.records import previews as layout
from dbray.records.previews import Preview
from dbray.spec.sections import Previews

ASKED = Previews(prompts=("a photo of {subject}", "a {class}"), seed=3)
FILES = (
    layout.name_images([b"rex 0", b"rex 1"])
    | layout.name_base_images([b"dog 0", b"dog 1"])
    | layout.name_photographs([b"photo"] * 11)
    | layout.describe(ASKED, "dog", "zx", [2**53 + 1, 7])
)


def test_named_files_are_read_back():
    assert layout.pictures_of(FILES) == [
        Preview(b"rex 0", b"dog 0", "a photo of zx dog", "a photo of dog", "9007199254740993"),
        Preview(b"rex 1", b"dog 1", "a dog", "a dog", "7"),
    ]
    assert layout.prompts_of(FILES[layout.DESCRIPTION]) == ["a photo of zx dog", "a dog"]
    assert {name for name in FILES if not layout.is_picture(name)} == {layout.DESCRIPTION}


def test_more_than_ten_photographs_keep_their_order():
    files = layout.name_photographs(str(number).encode() for number in range(12))
    assert layout.photographs_of(files) == [str(number).encode() for number in range(12)]


def test_missing_preview_files_are_none():
    assert layout.pictures_of({"0.png": b"image"}) == []
    [preview] = layout.pictures_of({"previews.json": b'{"prompts": ["a dog"]}'})
    assert preview == Preview(None, None, "a dog", "a dog", None)


@pytest.mark.parametrize(
    "description",
    [b"", b"[]", b"{}", b"\xff", b'{"prompts": 3}', b'{"prompts": ["a"], "seeds": [1, 2]}'],
)
def test_an_invalid_description_is_an_error(description):
    with pytest.raises(ValueError):  # noqa: PT011 - raised by json, zip or dbray
        layout.pictures_of({layout.DESCRIPTION: description})


def test_a_description_changes_if_the_images_would():
    for change in ({"seed": 4}, {"steps": 9}, {"prompts": ("a {class}",)}, {"sampler": "ddpm"}):
        other = ASKED.model_copy(update=change)
        seeds = [2**53 + 1, 7]
        assert layout.describe(other, "dog", "zx", seeds) != layout.describe(
            ASKED, "dog", "zx", seeds
        )
