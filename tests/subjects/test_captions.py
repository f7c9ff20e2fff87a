"""Captions next to photographs are used, with {subject} as the subject's name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kit.worlds import write_photos

from dbray.spec.subject import Subject
from dbray.subjects import validation
from dbray.subjects.captions import with_placeholders
from dbray.subjects.entries import Entry


@pytest.fixture
def rex(tmp_path) -> Path:
    write_photos(tmp_path / "photos", {"rex": "dog"})
    return tmp_path / "photos" / "rex"


def captions_of(source) -> tuple[tuple[str, ...] | None, list[str]]:
    [(subject, _)], problems = validation.read(str(source))
    return subject.captions, [problem.what for problem in problems]


def write_sidecars(folder: Path, *texts: str, suffix: str = ".txt") -> None:
    for number, text in enumerate(texts):
        (folder / f"{number}{suffix}").write_text(text, encoding="utf-8")


@pytest.mark.parametrize("suffix", [".txt", ".caption"])
def test_sidecar_files_are_captions(rex, suffix):
    write_sidecars(rex, "a dog asleep\n", "a {subject} at sea", "Dog, indoors", suffix=suffix)
    wanted = ("a {subject} asleep", "a {subject} at sea", "{subject}, indoors")
    assert captions_of(rex.parent) == (wanted, [])
    assert captions_of(rex) == (wanted, [])
    manifest = rex.parent / "all.jsonl"
    manifest.write_text(json.dumps({"id": "rex", "class_noun": "dog", "images": ["rex"]}))
    assert captions_of(manifest) == (wanted, [])
    images = tuple(f"rex/{number}.png" for number in (2, 0))
    subject = Subject(id="rex", class_noun="dog", images=images)
    [(read, _)], _ = validation.read([subject], folder=rex.parent)
    assert read.captions == (wanted[2], wanted[0])


def test_captions_in_a_manifest_replace_sidecar_files(rex):
    write_sidecars(rex, "a dog", "a dog", "a dog")
    given = ("{subject} 1", "{subject} 2", "{subject} 3")
    subject = Subject(id="rex", class_noun="dog", images=("rex",), captions=given)
    [(read, _)], problems = validation.read([subject], folder=rex.parent)
    assert (read.captions, problems) == (given, [])


def test_missing_captions_and_captions_without_the_subject_are_reported(rex):
    write_sidecars(rex, "hotdogs on a bench")
    captions, [missing, unnamed] = captions_of(rex)
    assert captions == ("a {subject}, hotdogs on a bench", "a {subject}", "a {subject}")
    assert "2 of its 3 images have no caption" in missing
    assert "do not name the subject" in unnamed


def test_kohya_captions_name_the_subject_by_identifier_and_noun(rex):
    (rex / "class.txt").unlink()
    write_sidecars(rex, "photo of sks dog, asleep", "SKS running", "a dog on grass")
    folder = rex.rename(rex.parent / "5_sks dog")
    captions, _ = captions_of(folder)
    assert captions == ("photo of {subject}, asleep", "{subject} running", "a {subject} on grass")


def test_wrong_placeholders_in_a_sidecar_file_are_errors(rex):
    write_sidecars(rex, "a {thing} {subject}", "a dog", "a dog")
    _, [what] = captions_of(rex)
    assert "{thing}" in what


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_metadata_files_are_read_in_a_folder_and_as_a_manifest(rex, kind):
    rows = [("0.png", "a dog asleep"), ("2.png", "a dog, again")]
    if kind == "jsonl":
        text = "".join(json.dumps({"file_name": a, "text": b, "more": 1}) + "\n" for a, b in rows)
    else:
        text = "file_name,text\n" + "".join(f'{a},"{b}"\n' for a, b in rows)
    file = rex / f"metadata.{kind}"
    file.write_text(text)
    captions, [missing] = captions_of(rex)
    assert captions == ("a {subject} asleep", "a {subject}", "a {subject}, again")
    assert "1 of its 3 images" in missing
    [(subject, _)], problems = validation.read(str(file))
    assert problems == []
    assert subject.images == (str(rex / "0.png"), str(rex / "2.png"))
    assert subject.captions == ("a {subject} asleep", "a {subject}, again")


def test_a_metadata_file_above_folders_lists_several_subjects(rex):
    write_photos(rex.parent, {"tom": "cat"})
    file = rex.parent / "metadata.jsonl"
    rows = [{"file_name": f"{name}/{n}.png", "text": f"{name} {n}"}
            for name in ("rex", "tom") for n in range(3)]  # fmt: skip
    file.write_text("\n".join(map(json.dumps, rows)))
    for source in (file, rex.parent):
        found, _ = validation.read(str(source))
        assert {s.id: s.class_noun for s, _ in found} == {"rex": "dog", "tom": "cat"}
        assert found[1][0].captions == tuple(f"a {{subject}}, tom {n}" for n in range(3))


def test_errors_in_a_metadata_file_are_reported(rex):
    file = rex / "metadata.jsonl"
    file.write_text('{"file_name": "0.png"}\n{"file_name": "9.png"}\n{"text": "x"}\n{')
    _, problems = validation.read(str(file))
    whats = [problem.what for problem in problems]
    assert sum("9.png does not exist" in what for what in whats) == 1
    assert sum("does not name an image" in what for what in whats) == 1
    assert sum("not valid JSON" in what for what in whats) == 1


def test_without_a_class_noun_only_the_identifier_is_replaced():
    entry = Entry("subjects.yaml", "rex")
    captions = with_placeholders(["none of it but zb asleep"], "none", "zb", entry)
    assert captions == ("none of it but {subject} asleep",)
    assert with_placeholders(["none asleep"], "none", None, entry) == ("a {subject}, none asleep",)
