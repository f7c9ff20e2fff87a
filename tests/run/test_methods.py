"""The laws hold for every method: a subject's weights depend only on its own inputs."""

from __future__ import annotations

import pytest
from kit.processes import started
from kit.records import files_of
from kit.worlds import add_class_images, load_job

from dbray.method.lora import FILE
from dbray.records import previews
from dbray.records.models import Registry
from dbray.run.job import Silence, run_job
from dbray.storage.store import Store

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

SUBJECTS = {"ace": "cat", "bob": "dog", "cid": "dog"}
LORA = {"method": {"kind": "lora", "rank": 4}, "steps": 40}


class Killer(Silence):
    """Kills the lane's worker once, in the middle of a subject's steps."""

    killed = 0

    def progress(self, phase, done, total, detail=""):
        if phase == "training" and detail and not self.killed:
            for child in started("RayTrainWorker"):
                child.kill()
                self.killed += 1


@pytest.fixture(scope="module")
def finished(ray_session, tiny_base, tmp_path_factory):
    """Three subjects through one lane."""
    job = load_job(tmp_path_factory.mktemp("lora"), tiny_base, SUBJECTS, recipe=LORA)
    add_class_images(job)
    return job, run_job(job)


def test_adapters_are_published_with_previews(finished):
    job, result = finished
    assert result.exit_code == 0
    store = Store(job.storage)
    record = Registry(store).find("cid")
    assert record.files == (FILE,)
    assert record.recipe.method.rank == 4
    assert len(previews.annex(store, record.name).names()) > 3
    assert files_of(job, "bob")[FILE] != files_of(job, "cid")[FILE]


def test_adapters_are_independent_of_other_subjects_and_kills(finished, tiny_base, tmp_path):
    job, _ = finished
    killer = Killer()
    alone = load_job(tmp_path, tiny_base, {"cid": "dog"}, recipe=LORA, previews={"prompts": []},
                     resources={"checkpoint_every": 2})  # fmt: skip
    add_class_images(alone)
    assert run_job(alone, watch=killer).exit_code == 0
    assert killer.killed
    records = [Registry(Store(one.storage)).find("cid") for one in (job, alone)]
    assert records[0].fingerprint == records[1].fingerprint
    assert files_of(alone, "cid") == files_of(job, "cid")


TAUGHT = {"recipe": LORA, "prior": {"kind": "teacher"}}


@pytest.mark.slow
def test_a_taught_adapter_depends_on_neither_company_nor_kills(ray_session, tiny_base, tmp_path):
    subjects = {"ace": "none", "cid": "dog"}
    job = load_job(tmp_path / "company", tiny_base, subjects, **TAUGHT)
    assert run_job(job).exit_code == 0
    store, killer = Store(job.storage), Killer()
    assert store.names("priors") == []
    alone = load_job(tmp_path / "alone", tiny_base, {"cid": "dog"}, **TAUGHT,
                     resources={"checkpoint_every": 2})  # fmt: skip
    assert run_job(alone, watch=killer).exit_code == 0
    assert killer.killed
    assert files_of(alone, "cid") == files_of(job, "cid")
    records = {one.id: one for one in Registry(store).list()}
    assert records["ace"].ablation == "no class noun"
    assert records["cid"].prior_digest is None
    assert records["cid"].timings["teacher"] > 0
    assert max(point[3] for point in records["cid"].loss) > 0
    assert all(point[3] == 0 for point in records["ace"].loss)
