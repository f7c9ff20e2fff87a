"""Photographs of people: `dbray validate` warns of several people, and of nobody.

A CLIP that knows people cannot be built here: where its judgement matters, shares are given.
"""

from __future__ import annotations

import pytest
import torch
from kit.embedders import build_clip, build_dino
from kit.worlds import write_job

from dbray.cli import main
from dbray.planning import people, zero_shot
from dbray.planning.checks import check_file

SUBJECTS = {"ann": "young woman", "rex": "dog", "tom": "man"}
ONE, SEVERAL, NOBODY = [0.9, 0.1, 0.0], [0.1, 0.85, 0.05], [0.0, 0.05, 0.95]
UNSURE = [0.3, 0.6, 0.1]


class Given:
    """Stands in for a CLIP: the shares of each photograph of each person in turn."""

    def __init__(self, *subjects):
        self.left, self.asked = list(subjects), []

    def shares(self, photographs):
        self.asked.append(photographs)
        return torch.tensor(self.left.pop(0))


@pytest.fixture
def warnings(tiny_base, tmp_path, monkeypatch):
    checked = check_file(write_job(tmp_path, tiny_base, SUBJECTS))

    def of(*subjects):
        given = Given(*subjects)
        monkeypatch.setattr(zero_shot, "load", lambda job, texts: given)
        found = people.look(checked)
        assert all(one.severity == "warning" for one in found)
        return given, [(one.subject, one.what) for one in found]

    return of


def test_only_people_are_looked_at(warnings):
    given, found = warnings([ONE] * 3, [ONE] * 3)
    assert found == []
    assert [{image.split("/")[-2] for image in images} for images in given.asked] == [
        {"ann"}, {"tom"},
    ]  # fmt: skip


def test_what_is_wrong_is_said_of_each_photograph(warnings):
    _, found = warnings([ONE, SEVERAL, NOBODY], [NOBODY, NOBODY, ONE])
    assert found == [
        ("ann", "1.png may show several people"),
        ("ann", "2.png may show nobody"),
        ("tom", "0.png, 1.png may show nobody"),
    ]


def test_an_unsure_look_says_nothing(warnings):
    assert warnings([UNSURE] * 3, [ONE] * 3)[1] == []


@pytest.mark.parametrize(
    ("noun", "is_one"),
    [("man", True), ("Young Woman", True), ("dog", False), ("snowman", False), ("man bag", False)],
)
def test_the_last_word_of_a_noun_decides(noun, is_one):
    assert people.is_person(noun) is is_one


def test_validate_looks_with_the_clip_of_the_job(tiny_base, tmp_path, capsys, monkeypatch):
    clip, dino = build_clip(tmp_path / "clip"), build_dino(tmp_path / "dino")
    file = write_job(tmp_path / "job", tiny_base, {"tom": "man"},
                     scoring={"clip": str(clip), "embedder": str(dino)})  # fmt: skip
    checked = check_file(file)
    images = checked.subjects[0].subject.images
    seen = zero_shot.load(checked.job, people._TEXTS).shares(images)
    assert seen.shape == (3, 3)
    assert torch.allclose(seen.sum(dim=1), torch.ones(3))
    monkeypatch.setattr(people, "MIN_SHARE", 0.0)  # whatever a random CLIP sees is said
    assert main(["validate", str(file)]) == 0
    printed = " ".join("".join(capsys.readouterr()).split())
    assert "0.png, 1.png, 2.png may show several people" in printed
    assert "0.png, 1.png, 2.png may show nobody" in printed


def test_without_a_clip_nothing_is_said(tiny_base, tmp_path):
    assert people.look(check_file(write_job(tmp_path, tiny_base, {"tom": "man"}))) == []
