"""The package's Python API."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest
from kit.worlds import write_photos

import dbray
from dbray.errors import DbrayError


def test_a_job_accepts_paths_and_a_folder(tmp_path, tiny_base):
    rex = dbray.Subject(id="rex", class_noun="dog", images=tmp_path / "rex")
    assert rex.images == (str(tmp_path / "rex"),)
    job = dbray.Job(base=tiny_base, subjects=tmp_path / "photos", storage=tmp_path / "runs")
    assert (job.base, job.subjects) == (str(tiny_base), str(tmp_path / "photos"))
    several = dbray.Subject(id="rex", class_noun="dog", images=[Path("a.png"), "b.png"])
    assert several.images == ("a.png", "b.png")


def test_a_mistake_in_a_constructor_is_reported_as_in_a_job_file():
    with pytest.raises(DbrayError) as caught:
        dbray.Recipe(stepz=3, batch_size=0)
    problems = {one.what.partition(":")[0]: one for one in caught.value.problems}
    assert problems.keys() == {"stepz", "batch_size"}
    assert problems["stepz"].where == "Recipe"
    assert "write 'steps'" in problems["stepz"].fix


def test_a_nested_mistake_is_reported_by_the_outer_constructor():
    with pytest.raises(DbrayError, match=r"Job: recipe\.steps: .*greater"):
        dbray.Job(base="miniature", subjects="photos", recipe={"steps": 0})


def test_a_missing_job_file_is_a_dbray_error(tmp_path):
    with pytest.raises(DbrayError, match="does not exist"):
        dbray.run(tmp_path / "none.yaml")


@pytest.mark.ray
def test_the_example_in_the_package_docstring_runs_also_as_a_file(
    ray_session, tiny_base, tmp_path, monkeypatch
):
    write_photos(tmp_path / "photos", {"rex": "dog"})
    (tmp_path / "base").symlink_to(tiny_base)
    monkeypatch.chdir(tmp_path)
    example = dbray.__doc__.replace("steps=4)", "steps=4, prior_weight=0)").replace(
        'storage="runs"', 'storage="runs", previews={"prompts": []}'
    )
    [test] = [doctest.DocTestParser().get_doctest(example, {}, "dbray", None, 0)]
    assert doctest.DocTestRunner().run(test) == (0, 5)
    file = tmp_path / "job.yaml"
    file.write_text(
        "{base: base, subjects: photos, storage: runs, recipe: {steps: 4, prior_weight: 0}, "
        "previews: {prompts: []}}"
    )
    for path in (file, str(file)):
        assert dbray.run(path).summary.counts["kept"] == 1
