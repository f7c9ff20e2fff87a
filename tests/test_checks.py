"""All that is wrong with a job is told at once, from a file and from Python alike."""

from __future__ import annotations

import pytest
from worlds import load_job, write_job

from dbray.checks import check_file, check_job
from dbray.errors import SpecError
from dbray.jobfile import Job

SUBJECTS = {"rex": "dog", "tom": "cat"}


@pytest.fixture
def broken(tmp_path, tiny_base) -> Job:
    """A job with an image that is none, and no such base."""
    job = load_job(tmp_path, tiny_base, SUBJECTS)
    (tmp_path / "photos" / "tom" / "0.png").write_bytes(b"no image")
    return job.model_copy(update={"base": str(tmp_path / "nowhere")})


def test_a_base_and_an_image_are_told_together(broken):
    with pytest.raises(SpecError) as told:
        check_job(broken).ready()
    assert "nowhere" in str(told.value)
    assert "0.png" in str(told.value)


def test_a_job_and_its_file_are_told_the_same(tmp_path, tiny_base):
    file = write_job(tmp_path, tiny_base, SUBJECTS)
    (tmp_path / "photos" / "tom" / "0.png").write_bytes(b"no image")
    assert check_job(Job.load(file)).problems == check_file(file).problems


def test_a_job_that_may_run_keeps_its_warnings(tmp_path, tiny_base):
    job = load_job(tmp_path, tiny_base, SUBJECTS)
    (tmp_path / "photos" / "tom" / "0.png").unlink()
    ready = check_job(job).ready()
    assert [one.subject.id for one in ready.subjects] == ["rex", "tom"]
    assert ["only 2 images" in one.what for one in ready.warnings] == [True]
    assert ready.base.folder == tiny_base
