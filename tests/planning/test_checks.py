"""All problems of a job are reported at once, from a file and from Python."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from kit.families import FAMILIES
from kit.worlds import load_job, write_job, write_photos

from dbray.errors import SpecError
from dbray.planning.checks import check_file, check_job
from dbray.spec.job import Job
from dbray.spec.subject import Subject

SUBJECTS = {"rex": "dog", "tom": "cat"}


@pytest.fixture
def broken(tmp_path, tiny_base) -> Job:
    """A job with an invalid image and a missing base."""
    job = load_job(tmp_path, tiny_base, SUBJECTS)
    (tmp_path / "photos" / "tom" / "0.png").write_bytes(b"no image")
    return job.model_copy(update={"base": str(tmp_path / "nowhere")})


def test_errors_in_base_and_images_are_reported_together(broken):
    with pytest.raises(SpecError) as caught:
        check_job(broken).ready()
    assert "nowhere" in str(caught.value)
    assert "0.png" in str(caught.value)


def test_a_job_and_its_file_have_the_same_problems(tmp_path, tiny_base):
    file = write_job(tmp_path, tiny_base, SUBJECTS)
    (tmp_path / "photos" / "tom" / "0.png").write_bytes(b"no image")
    assert check_job(Job.load(file)).problems == check_file(file).problems


def test_paths_of_a_python_job_are_relative_to_the_working_folder(tmp_path, tiny_base, monkeypatch):
    job = load_job(tmp_path, tiny_base, SUBJECTS)
    monkeypatch.chdir(tmp_path)
    Path("base").symlink_to(tiny_base)
    relative = job.model_copy(update={"base": "base", "subjects": "photos", "storage": "runs"})
    ready = check_job(relative).ready()
    assert (ready.job.base, ready.job.storage) == (str(tiny_base), job.storage)
    Path("file").touch()
    [problem] = check_job(job.model_copy(update={"storage": "file"})).errors
    assert "is a file" in problem.what


def test_identifiers_are_checked_against_the_bases_recommended_prompts(tmp_path, tiny_base):
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    write_photos(tmp_path, {"rex": "dog"})
    rex = Subject(id="rex", class_noun="dog", images=(str(tmp_path / "rex"),), identifier="zb")
    job = Job(base=str(base), subjects=(rex,), storage=str(tmp_path / "runs"))

    def findings() -> list[str]:
        return [one.what for one in check_job(job).problems if "in use" in one.what]

    assert findings() == []
    (base / "dbray.yaml").write_text("previews: {prompts: ['a {subject} on a zb']}")
    assert findings() == ["'zb' is a word of the class nouns or prompts in use"]


@pytest.mark.parametrize(
    ("storage", "why"),
    [("file", "is a file"), ("file/runs", "Not a directory"), ("a" * 300, "too long")],
)
def test_an_invalid_storage_folder_is_reported_with_its_line(tmp_path, tiny_base, storage, why):
    (tmp_path / "file").touch()
    file = write_job(tmp_path, tiny_base, SUBJECTS, storage=storage)
    [problem] = check_file(file).problems
    line = file.read_text().splitlines().index(f"storage: {storage}") + 1
    assert problem.where == f"{file}:{line}"
    assert why in problem.what


def test_a_job_that_may_run_keeps_its_warnings(tmp_path, tiny_base):
    job = load_job(tmp_path, tiny_base, SUBJECTS)
    (tmp_path / "photos" / "tom" / "0.png").unlink()
    ready = check_job(job).ready()
    assert [one.subject.id for one in ready.subjects] == ["rex", "tom"]
    assert ["only 2 images" in one.what for one in ready.warnings] == [True]
    assert ready.base.folder == tiny_base


def test_small_photographs_are_compared_with_the_training_resolution(tmp_path, tiny_base):
    job = write_job(tmp_path, tiny_base, SUBJECTS, recipe={"resolution": 96})
    warnings = check_file(job).problems
    assert [warning.subject for warning in warnings] == ["rex", "tom"]
    assert all("training sees 96 x 96" in warning.what for warning in warnings)


def test_settings_unsupported_by_the_family_are_reported(tmp_path):
    base = FAMILIES["z_image"].build(tmp_path / "base")
    recipe = {"min_snr_gamma": 5.0, "train_text_encoder": True, "method": "pivotal", "steps": 200}
    job = load_job(tmp_path, base, SUBJECTS, recipe=recipe, prior={"sampler": "ddpm"})
    found = {problem.where: problem for problem in check_job(job).problems}
    assert found["job.prior"].what == "Z-Image has no sampler 'ddpm'; choose one of: euler"
    assert found["job.prior"].fix == "set prior.sampler to one of those, or leave it out"
    recipes = [problem.what for problem in check_job(job).problems if problem.where == "job.recipe"]
    assert len(recipes) == 3
    assert "job.previews" not in found


def test_a_warm_up_that_outlasts_the_steps_is_a_warning(tmp_path, tiny_base):
    recipe = {"steps": 100, "warmup_steps": 100}
    job = write_job(tmp_path, tiny_base, SUBJECTS, recipe=recipe)
    [problem] = check_file(job).problems
    assert problem.severity == "warning"
    assert problem.what == "the warm-up of 100 steps does not end within the 100 steps"
    assert not check_file(write_job(tmp_path, tiny_base, {}, recipe={"steps": 101})).problems


def test_class_nouns_that_are_wrong_on_purpose_are_called_ablations(tmp_path, tiny_base):
    job = load_job(tmp_path, tiny_base, {"rex": "none", "tom": "cat"})
    wrong = Subject(
        id="fido",
        class_noun="cat",
        true_class_noun="dog",
        images=tuple(str(file) for file in (tmp_path / "photos" / "tom").glob("*.png")),
    )
    [problem] = check_job(job).problems
    assert (problem.severity, problem.subject) == ("warning", "rex")
    assert problem.what == (
        "is an ablation, with no class noun: "
        "its prompts have the identifier alone, and no class is kept"
    )
    [problem] = check_job(job.model_copy(update={"subjects": (wrong,)})).problems
    assert problem.what == "is an ablation, with the class noun cat in place of dog"


def test_settings_of_class_images_beside_a_teacher_are_a_warning(tmp_path, tiny_base):
    job = load_job(tmp_path, tiny_base, SUBJECTS, prior={"kind": "teacher"})
    [problem] = check_job(job).problems
    assert (problem.severity, problem.where) == ("warning", "job.prior")
    assert problem.what.startswith("prior: count, steps is of class images")
