"""Jobs whose lanes train several subjects together: the laws hold, and failures stay single."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from kit.processes import started
from kit.records import files_of
from kit.worlds import add_class_images, load_job

from dbray.errors import SpecError
from dbray.lanes import worker
from dbray.planning.checks import check_job
from dbray.planning.plan import make_plan
from dbray.records.models import Registry
from dbray.records.packs import read_pack
from dbray.run import packing
from dbray.run.job import run_job
from dbray.run.journal import Journal
from dbray.run.options import RunOptions
from dbray.run.recorder import Recorder
from dbray.run.tally import Tally
from dbray.run.watch import Silence
from dbray.storage.store import Store
from dbray.training.loop import Course

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

GOOD = {"ace": "cat", "bob": "dog", "cid": "dog", "dot": "cat", "eve": "dog"}
LORA = {"method": {"kind": "lora", "rank": 4}, "steps": 40}
PACKED = {"pack": 3, "checkpoint_every": 7}
NO_PREVIEWS = {"prompts": []}


class Saboteur(Silence):
    """Truncates the photographs of a subject after validation, and kills the lane's worker once."""

    killed = 0

    def __init__(self, photos: Path) -> None:
        self._photos = photos

    def progress(self, phase, done, total, detail=""):
        for image in self._photos.glob("*.png"):
            image.write_bytes(image.read_bytes()[:100])
        if phase == "training" and detail.count("/") >= 3 and not self.killed:
            for child in started("RayTrainWorker"):
                child.kill()
                self.killed += 1


def work_with_bad_subjects(config):
    """Make the loss of one subject nan, and let another one's draws fail after some steps."""
    loss, draw = Course.loss, Course.draw

    def bad_loss(course, batch, prediction):
        found = loss(course, batch, prediction)
        return found * math.nan if course.subject_id == "nan" else found

    def bad_draw(course):
        if course.subject_id == "odd" and course.step == 3:
            raise ValueError("no such image")
        return draw(course)

    Course.loss, Course.draw = bad_loss, bad_draw
    worker._work(config)


@pytest.fixture(scope="module")
def crowd(ray_session, tiny_base, tmp_path_factory):
    """Eight subjects in one lane of three slots; its worker is killed once."""
    folder = tmp_path_factory.mktemp("crowd")
    subjects = {**GOOD, **dict.fromkeys(("nan", "odd", "poor"), "dog")}
    job = load_job(folder, tiny_base, subjects, recipe=LORA, resources=PACKED,
                   previews=NO_PREVIEWS)  # fmt: skip
    add_class_images(job)
    saboteur = Saboteur(folder / "photos" / "poor")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "_work", work_with_bad_subjects)
        result = run_job(job, watch=saboteur)
    assert saboteur.killed
    return job, result


def test_only_the_subjects_to_blame_fail(crowd):
    _, result = crowd
    found = {one.id: one for one in result.outcomes}
    assert {name for name, one in found.items() if one.is_published} == set(GOOD)
    assert found["nan"].error.kind == "Diverged"
    assert found["odd"].error.message == "ValueError: no such image"
    assert found["poor"].error.kind == "SubjectError"
    assert max(one.attempts for one in found.values()) == 2
    assert [one.attempts for one in found.values()].count(2) == 3


def test_a_packed_subject_depends_on_neither_company_nor_kills(crowd, tiny_base, tmp_path):
    job, _ = crowd
    alone = load_job(tmp_path, tiny_base, {"eve": "dog"}, recipe=LORA, resources={"pack": 3},
                     previews=NO_PREVIEWS)  # fmt: skip
    add_class_images(alone)
    assert run_job(alone).exit_code == 0
    records = [Registry(Store(one.storage)).find("eve") for one in (job, alone)]
    assert records[0].fingerprint == records[1].fingerprint
    assert [record.metadata["pack"] for record in records] == ["3", "3"]
    assert files_of(alone, "eve") == files_of(job, "eve")
    assert len(records[1].loss) == 40


def test_models_are_kept_when_only_the_pack_changes(crowd):
    job, _ = crowd
    resources = job.resources.model_copy(update={"pack": 1})
    again = job.model_copy(update={"resources": resources})
    result = run_job(again, RunOptions(skip_invalid=True))
    assert {one.id for one in result.outcomes if one.status == "kept"} == set(GOOD)


@pytest.fixture
def trio(tiny_base, tmp_path):
    """A job of three subjects whose pack is measured."""
    return load_job(
        tmp_path, tiny_base, {"ace": "cat", "bob": "dog", "cid": "dog"}, previews=NO_PREVIEWS,
        recipe={**LORA, "steps": 4, "prior_weight": 0}, resources={"pack": "auto"},
    )  # fmt: skip


def check_measured(choice):
    assert 1 <= choice.num_slots <= 3
    assert {1, 2} <= choice.seconds.keys()


def test_a_measured_pack_is_recorded_and_kept(ray_session, trio, monkeypatch):
    store = Store(trio.storage)
    plan = make_plan(check_job(trio).ready(), store)
    recorder = Recorder(Tally(plan, "", lanes=1), Journal(store, trio.id), Silence())
    settled = packing.settle_pack(plan, recorder)
    choice = read_pack(store, trio.id)
    check_measured(choice)
    assert settled.job.resources.pack == choice.num_slots
    monkeypatch.setattr(packing, "choose_pack", None)
    assert packing.settle_pack(plan, recorder) == settled


@pytest.mark.slow
def test_a_job_that_is_continued_keeps_its_measured_pack(ray_session, trio, monkeypatch):
    assert run_job(trio).exit_code == 0
    check_measured(read_pack(Store(trio.storage), trio.id))
    before = files_of(trio, "bob")
    Store(trio.storage).remove("models/bob")
    monkeypatch.setattr(packing, "choose_pack", None)
    assert run_job(trio).exit_code == 0
    assert files_of(trio, "bob") == before


def test_a_pack_of_a_method_that_cannot_share_a_model_is_refused(tiny_base, tmp_path):
    job = load_job(tmp_path, tiny_base, {"ace": "cat"}, resources={"pack": 2})
    with pytest.raises(SpecError, match="change the base's own weights"):
        run_job(job)
