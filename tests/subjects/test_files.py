"""Lists written by programs and spreadsheets are read, and one cause gives one error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kit.worlds import write_photos

from dbray.subjects import validation


@pytest.fixture
def folder(tmp_path) -> Path:
    write_photos(tmp_path / "photos", {"rex": "dog", "tom": "cat"})
    return tmp_path


def read(folder: Path, name: str, text: str):
    file = folder / name
    file.write_text(text)
    found, problems = validation.read(str(file))
    listed = {subject.id: (subject.class_noun, len(subject.images)) for subject, _ in found}
    return listed, problems


BOTH = {"rex": ("dog", 3), "tom": ("cat", 3)}
NAMES = {one: [f"photos/{one}/{n}.png" for n in range(3)] for one in BOTH}
PER_IMAGE = [f"{one},{BOTH[one][0]},{name}" for one in BOTH for name in NAMES[one]]
TABLES = {
    "semicolons": "id;class_noun;images\nrex;dog;photos/rex\ntom;cat;photos/tom\n",
    "tabs": "id\tclass_noun\timages\nrex\tdog\tphotos/rex\ntom\tcat\tphotos/tom\n",
    "a row per image": "\n".join(["id,class_noun,image", *PER_IMAGE]),
    "a row per image, unordered": "\n".join(["id,class_noun,images", *PER_IMAGE[::-1]]),
    "a list of JSON": "id,class_noun,images\n" + "".join(
        f'{one},{BOTH[one][0]},"{json.dumps(NAMES[one]).replace(chr(34), chr(34) * 2)}"\n'
        for one in BOTH),
    "a list of Python": "id,class_noun,images\n" + "".join(
        f'{one},{BOTH[one][0]},"{NAMES[one]!r}"\n' for one in BOTH),
    "rows of commas": ",,\nid,class_noun,images,\nrex,dog,photos/rex,\n,,,\ntom,cat,photos/tom,\n",
}  # fmt: skip


@pytest.mark.parametrize("kind", TABLES)
def test_csv_tables_of_spreadsheets_and_programs_are_read(folder, kind):
    assert read(folder, "all.csv", TABLES[kind]) == (BOTH, [])


def test_captions_in_rows_per_image_keep_their_images(folder):
    rows = "".join(f"rex,dog,photos/rex/{n}.png,a {{subject}} {n}\n" for n in (2, 0, 1))
    (folder / "all.csv").write_text(f"id,class_noun,image,caption\n{rows}")
    [(subject, _)], problems = validation.read(str(folder / "all.csv"))
    assert problems == []
    assert [Path(image).stem for image in subject.images] == ["2", "0", "1"]
    assert subject.captions == ("a {subject} 2", "a {subject} 0", "a {subject} 1")


def test_the_fix_for_a_row_with_too_many_cells_works(folder):
    head = "id,class_noun,images\n"
    wrong = "rex,dog,photos/rex/0.png,photos/rex/1.png,photos/rex/2.png"
    _, [error] = read(folder, "all.csv", head + wrong)
    assert "separate the images in a cell by ';'" in error.fix
    right = "rex,dog,photos/rex/0.png;photos/rex/1.png;photos/rex/2.png"
    assert read(folder, "all.csv", head + right) == ({"rex": ("dog", 3)}, [])


def test_two_folders_under_one_id_are_not_joined(folder):
    _, [error] = read(
        folder, "all.csv", "id,class_noun,images\nrex,dog,photos/rex\nrex,dog,photos/tom"
    )
    assert "listed twice" in error.what


@pytest.mark.parametrize("name", ["all.json", "all.jsonl"])
def test_one_json_list_is_read(folder, name):
    rows = [{"id": one, "class_noun": BOTH[one][0], "images": NAMES[one]} for one in BOTH]
    assert read(folder, name, json.dumps(rows, indent=2)) == (BOTH, [])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("all.jsonl", '{\n  "id": "rex",\n  "class_noun": "dog",\n  "images": ["photos/rex"]\n}\n'),
        ("all.jsonl", "<html>\n<body>\n404\n</body>\n"),
        ("all.jsonl", '[{"id": "rex",\n "class_noun": "dog"\n "images": []}]'),
        ("all.json", '{"id": "rex",\n'),
    ],
)
def test_unreadable_json_gives_one_error(folder, name, text):
    found, [error] = read(folder, name, text)
    assert found == {}
    assert "not valid JSON" in error.what


def test_the_fix_for_an_object_in_several_lines_works(folder):
    pretty = json.dumps({"id": "rex", "class_noun": "dog", "images": ["photos/rex"]}, indent=1)
    _, [error] = read(folder, "all.jsonl", pretty)
    assert "one JSON object in one line" in error.fix
    assert read(folder, "all.jsonl", pretty.replace("\n", ""))[1] == []


def test_the_fix_for_windows_separators_works(folder):
    row = "rex,dog,photos\\rex\\0.png;photos\\rex\\1.png"
    _, errors = read(folder, "all.csv", f"id,class_noun,images\n{row}")
    assert len(errors) == 2
    assert "Windows separators" in errors[0].what
    assert errors[0].fix == "write '/' in place of '\\'"
    fixed = row.replace("\\", "/")
    assert read(folder, "all.csv", f"id,class_noun,images\n{fixed}")[1] == []


def test_a_name_in_another_unicode_form_is_reported(folder):
    (folder / "photos/rex/0.png").rename(folder / "photos/rex/Zoe\u0308.png")
    row = "rex,dog,photos/rex/Zo\u00eb.png"
    _, [error] = read(folder, "all.csv", f"id,class_noun,images\n{row}")
    assert "only in its Unicode form" in error.what
