"""Common folders: one flat folder, kohya's layout, and files that systems put into them."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
import yaml
from kit.worlds import write_photos

from dbray.cli import main
from dbray.planning.checks import check_file
from dbray.subjects import validation


@pytest.fixture
def rex(tmp_path) -> Path:
    """A flat folder of three photographs."""
    write_photos(tmp_path / "photos", {"rex": "dog"})
    return tmp_path / "photos" / "rex"


def write_job(folder: Path, base: Path, subjects: str) -> Path:
    file = folder / "job.yaml"
    file.write_text(
        yaml.safe_dump({"base": str(base), "subjects": subjects, "previews": {"prompts": []}})
    )
    return file


def test_a_flat_folder_of_photographs_is_one_subject(rex, tmp_path, tiny_base):
    checked = check_file(write_job(tmp_path, tiny_base, "photos/rex"))
    assert checked.problems == []
    [one] = checked.subjects
    assert (one.subject.id, one.subject.class_noun) == ("rex", "dog")
    assert one.subject.images == tuple(str(rex / f"{n}.png") for n in range(3))


def test_the_fix_for_a_flat_folder_without_a_class_noun_works(rex, tmp_path, tiny_base):
    (rex / "class.txt").unlink()
    (rex / "notes").mkdir()
    job = write_job(tmp_path, tiny_base, "photos/rex")
    [error] = check_file(job).problems
    assert error.what == "has no class noun"
    assert f"{rex}/class.txt" in error.fix
    (rex / "class.txt").write_text("dog")
    assert check_file(job).problems == []


def test_init_makes_a_job_from_a_flat_folder(rex, tmp_path, monkeypatch):
    (rex / "class.txt").unlink()
    monkeypatch.chdir(tmp_path)
    assert main(["init", "photos/rex", "--class", "dog", "-o", "job.yaml"]) == 0
    assert [one.subject.id for one in check_file(tmp_path / "job.yaml").subjects] == ["rex"]


def test_kohya_folder_names_give_identifier_and_class_noun(rex):
    (rex / "class.txt").unlink()
    folder = rex.rename(rex.parent / "10_sks dog").parent
    for default in (None, "animal"):
        [subject], [warning] = validation.scan(folder, default)
        assert (subject.id, subject.identifier) == ("sks-dog", "sks")
        assert subject.class_noun == "dog"
        assert "repeats" in warning.what
        assert "recipe.steps" in warning.fix


def test_a_class_file_overrides_a_kohya_folder_name(rex):
    folder = rex.rename(rex.parent / "10_sks dog").parent
    [subject], problems = validation.scan(folder)
    assert (subject.id, subject.identifier, problems) == ("10_sks-dog", None, [])


def test_the_fix_for_images_one_level_too_deep_names_their_folder(rex):
    _, [error] = validation.scan(rex.parents[1], "dog")
    assert error.fix == f"give {rex.parent} instead"
    subjects, problems = validation.scan(rex.parent, "dog")
    assert (len(subjects), problems) == (1, [])


def test_a_folder_of_hidden_files_holds_no_photographs(rex):
    nested = rex.parent / "more" / "tom"
    rex.rename(rex.parent / "tom")
    nested.parent.mkdir()
    (rex.parent / "tom").rename(nested)
    (nested.parent / "._0.png").write_bytes(b"what a Mac adds to a foreign disk")
    _, [error] = validation.scan(rex.parent, "dog")
    assert error.fix == f"give {nested.parent} instead"


@pytest.mark.parametrize("junk", ["@eaDir", "lost+found", "$RECYCLE.BIN", "#recycle", "__MACOSX"])
def test_folders_made_by_systems_are_not_subjects(rex, junk):
    for place in (rex, rex.parent):
        (place / junk).mkdir()
        (place / junk / "0.jpg").write_bytes(b"")
    subjects, problems = validation.scan(rex.parent)
    assert ([subject.id for subject in subjects], problems) == (["rex"], [])


def test_a_broken_link_is_reported(rex):
    (rex / "lost.png").symlink_to(rex / "moved/away.png")
    _, [error] = validation.scan(rex.parent)
    assert error.what.startswith(f"{rex / 'lost.png'} is a link to {rex / 'moved/away.png'}")
    (rex / "lost.png").unlink()  # the fix
    assert validation.scan(rex.parent)[1] == []


def test_names_that_differ_only_in_unicode_form_are_reported(rex):
    write_photos(rex.parent, dict.fromkeys([unicodedata.normalize("NFC", "Zoë")], "cat"))
    write_photos(rex.parent, dict.fromkeys([unicodedata.normalize("NFD", "Zoë")], "cat"))
    subjects, problems = validation.scan(rex.parent)
    assert {subject.id for subject in subjects} == {"zoe", "zo", "rex"}
    [problem] = problems
    assert "differ only in Unicode form" in problem.what
    assert "'zo'" in problem.fix
    assert "'zoe'" in problem.fix
