"""Job ids: from the project's folder, and never the id of another job's record."""

from __future__ import annotations

import shutil

import pytest
from kit.worlds import write_job

from dbray.errors import SpecError
from dbray.planning.checks import check_file
from dbray.planning.ids import origin, settle_id
from dbray.planning.plan import make_plan
from dbray.run.journal import Journal
from dbray.storage.store import Store


def begin(job_file, **changes):
    """Choose a job's id and write its record, as a run does; return the id."""
    ready = check_file(job_file).ready()
    store = Store(ready.job.storage)
    ready = settle_id(ready, store)
    Journal(store, ready.job.id).begin(make_plan(ready, store), "0")
    path = f"jobs/{ready.job.id}/job.json"
    store.write_json(path, {**store.read_json(path), **changes})
    return ready.job.id


@pytest.fixture
def world(tmp_path, tiny_base):
    def write(name, subject, **changes):
        changes = {"storage": str(tmp_path / "runs")} | changes
        return write_job(tmp_path / name, tiny_base, {subject: "dog"}, **changes)

    return write


def test_projects_that_share_a_storage_have_separate_records(world, tmp_path):
    assert begin(world("My Pets", "rex")) == "my-pets"
    assert begin(world("cars", "car")) == "cars"
    assert Store(str(tmp_path / "runs")).names("jobs") == ["cars", "my-pets"]


def test_a_record_with_the_old_default_id_is_continued(world):
    file = world("pets", "rex", id="job")
    assert begin(file, file=None) == "job"
    file.write_text(file.read_text().replace("id: job\n", ""))
    assert begin(file) == "job"
    assert begin(world("cars", "car")) == "cars"


def test_the_fix_for_the_record_of_another_file_works(world):
    first, second = world("a", "rex", id="same"), world("b", "tom", id="same")
    begin(first)
    with pytest.raises(SpecError, match=f"is that of {first}") as caught:
        begin(second)
    fix = caught.value.problems[0].fix.split("'")[1]
    second.write_text(second.read_text().replace("id: same", fix))
    assert begin(second) == "same-2"


def test_the_record_of_other_subjects_is_rejected_without_a_file(world):
    begin(world("a", "rex", id="same"), file=None)
    with pytest.raises(SpecError, match="another job, with other subjects"):
        begin(world("b", "tom", id="same"))


def test_a_moved_project_keeps_its_record(world, tmp_path):
    begin(world("a", "rex", id="same"))
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert begin(tmp_path / "b" / "job.yaml") == "same"


def test_a_job_unpacked_by_ray_is_recognised_by_its_subjects(tmp_path):
    assert origin(tmp_path / "_ray_pkg_0a1b" / "job.yaml") is None
    assert origin(tmp_path / "pets" / "job.yaml") == str(tmp_path / "pets" / "job.yaml")


def test_a_damaged_record_is_rewritten(world, tmp_path):
    Store(str(tmp_path / "runs")).write_bytes("jobs/a/job.json", b"[")
    assert begin(world("a", "rex")) == "a"


def test_a_resubmitted_job_with_moved_photographs_continues(tmp_path, tiny_base):
    storage = str(tmp_path / "runs")
    for package in ("_ray_pkg_1", "_ray_pkg_2"):  # Ray unpacks each submission to a new folder
        file = write_job(tmp_path / package, tiny_base, {"rex": "dog"}, storage=storage, id="pets")
        assert begin(file) == "pets"
