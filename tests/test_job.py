"""The main job for real: Ray Data, Ray Train, registry, report; its laws and its failures."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from worlds import load_job

from dbray import manifest
from dbray.errors import JobBusy, SpecError, StoreError
from dbray.job import RunOptions, Silence, run_job
from dbray.journal import Journal
from dbray.registry import Registry
from dbray.spec import Job, Subject, utc_now
from dbray.store import Store

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

RECIPE = {"steps": 100}
SUBJECTS = {"ace": "cat", "bob": "dog", "cid": "dog", "dot": "cat", "eve": "dog"}
OTHERS = ("fay", "gus", "hal", "ida")


def weights_of(job: Job, model: str) -> bytes:
    registry = Registry(Store(job.storage))
    record = registry.find(model)
    return Path(registry.weights(record, Path(job.storage))["unet.safetensors"]).read_bytes()


@pytest.fixture(scope="module")
def finished(ray_session, tiny_base, tmp_path_factory):
    """Five subjects of two class nouns through one lane."""
    job = load_job(tmp_path_factory.mktemp("one-lane"), tiny_base, SUBJECTS, recipe=RECIPE)
    return job, run_job(job)


def test_every_subject_is_published_with_one_prior_set_per_noun(finished):
    job, result = finished
    assert result.exit_code == 0
    assert {outcome.id: outcome.status for outcome in result.outcomes} == dict.fromkeys(
        SUBJECTS, "published"
    )
    assert len(Store(job.storage).names("priors")) == 2
    assert result.summary.prior_images == 12


def test_a_record_tells_how_the_model_came_to_be(finished):
    job, _ = finished
    record = Registry(Store(job.storage)).find("bob")
    assert (record.class_noun, record.steps, record.base) == ("dog", 100, job.base)
    assert len(record.image_digests) == 3
    assert [point[0] for point in record.loss] == list(range(1, 101))
    assert {"lease", "encode", "reset", "train"} <= record.timings.keys()
    assert record.versions["torch"]


def test_previews_and_report_are_there(finished):
    job, result = finished
    registry = Registry(Store(job.storage))
    previews = registry.previews(registry.find("eve"))
    assert previews is not None
    assert {"0.png", "1.png", "base-0.png", "base-1.png", "previews.json"} <= previews.keys()
    page = Path(result.report).read_text()
    assert all(subject_id in page for subject_id in SUBJECTS)


def test_previews_that_were_asked_otherwise_are_made_again(finished):
    job, _ = finished
    before = Registry(Store(job.storage)).find("eve")
    prompts = ("a {subject} in the snow", *job.previews.prompts[1:])
    asked = job.model_copy(
        update={"previews": job.previews.model_copy(update={"prompts": prompts})}
    )
    assert {outcome.status for outcome in run_job(asked).outcomes} == {"kept"}
    registry = Registry(Store(job.storage))
    assert registry.find("eve") == before
    described = json.loads(registry.previews(before)["previews.json"])
    assert described["prompts"][0] == f"a {before.identifier} dog in the snow"
    run_job(job)  # as the other tests want them


def test_running_again_keeps_everything_and_needs_no_cluster(finished):
    job, _ = finished
    before = weights_of(job, "ace")
    result = run_job(job, RunOptions(address="ray://nowhere.invalid:1"))
    assert {outcome.status for outcome in result.outcomes} == {"kept"}
    assert result.exit_code == 0
    assert weights_of(job, "ace") == before


def test_a_second_run_beside_the_first_is_refused(finished):
    job, _ = finished
    with Journal(Store(job.storage), job.id).hold(), pytest.raises(JobBusy, match="being run by"):
        run_job(job)


def test_invalid_input_runs_nothing(tmp_path, tiny_base):
    job = load_job(tmp_path, tiny_base, SUBJECTS)
    (tmp_path / "photos" / "bob" / "0.png").write_bytes(b"no image")
    with pytest.raises(SpecError, match=r"0\.png"):
        run_job(job, RunOptions(address="ray://nowhere.invalid:1"))
    assert not (tmp_path / "runs" / "jobs").exists()


class Listener(Silence):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text):
        self.notes.append(text)


def test_warnings_are_told_and_a_cluster_without_room_is_refused(ray_session, tiny_base, tmp_path):
    job = load_job(tmp_path, tiny_base, {"ace": "cat"}, resources={"threads_per_worker": 64,
                   "lanes": None})  # fmt: skip
    (tmp_path / "photos" / "ace" / "2.png").unlink()
    listener = Listener()
    with pytest.raises(SpecError, match="64 CPU"):
        run_job(job, watch=listener)
    assert any("2 images" in note for note in listener.notes)


@pytest.mark.timeout(300)
def test_a_job_runs_on_an_object_store(ray_session, tiny_base, tmp_path, s3_uri):
    job = load_job(tmp_path, tiny_base, {"ace": "cat"}, storage=s3_uri, tenant="acme")
    result = run_job(job)
    assert result.exit_code == 0, result.summary.failures
    store = Store(s3_uri)
    record = Registry(store).find("ace")
    assert record.tenant == "acme"
    assert Registry(store).weights(record, tmp_path / "weights")
    assert store.names(f"jobs/{job.id}") == [
        "job.json", "metrics.jsonl", "report.html", "results.jsonl", "summary.json",
    ]  # fmt: skip
    path = f"jobs/{job.id}/summary.json"
    store.write_json(path, {**store.read_json(path), "state": "running", "updated_at": utc_now()})
    with pytest.raises(JobBusy, match="was at work"):
        run_job(job)
    assert b"verysecret" not in store.read_bytes(f"jobs/{job.id}/job.json")


def test_a_relative_storage_is_that_of_this_process(ray_session, tiny_base, tmp_path, monkeypatch):
    job = load_job(tmp_path, tiny_base, {"ace": "cat"})
    monkeypatch.chdir(tmp_path)
    result = run_job(job.model_copy(update={"storage": "elsewhere"}))
    assert result.exit_code == 0, result.summary.failures
    assert Registry(Store(str(tmp_path / "elsewhere"))).find("ace")


class Poisoner(Silence):
    """Truncates a subject's images after validation."""

    def __init__(self, photos: Path) -> None:
        self._photos = photos

    def progress(self, phase, done, total, detail=""):
        for image in self._photos.glob("*.png"):
            image.write_bytes(image.read_bytes()[:100])


class Saboteur(Poisoner):
    """Besides, kills the lanes' workers in training."""

    killed = 0

    def progress(self, phase, done, total, detail=""):
        super().progress(phase, done, total, detail)
        if phase == "training" and detail and not self.killed:
            for child in psutil.Process().children(recursive=True):
                if "RayTrainWorker" in " ".join(child.cmdline()):
                    os.kill(child.pid, signal.SIGKILL)
                    self.killed += 1


@pytest.fixture(scope="module")
def sabotaged(ray_session, tiny_base, tmp_path_factory):
    """Nine subjects and a poisoned one through two lanes, one of which is killed."""
    folder = tmp_path_factory.mktemp("two-lanes")
    subjects = {**SUBJECTS, **dict.fromkeys(OTHERS, "dog"), "poor": "dog"}
    job = load_job(folder, tiny_base, subjects, recipe=RECIPE, resources={"lanes": 2})
    saboteur = Saboteur(folder / "photos" / "poor")
    result = run_job(job, watch=saboteur)
    return job, result, saboteur


def test_a_killed_lane_and_a_poisoned_subject_do_not_stop_the_job(sabotaged):
    _, result, saboteur = sabotaged
    assert saboteur.killed
    found = {outcome.id: outcome for outcome in result.outcomes}
    assert {name for name, one in found.items() if one.status == "published"} == {
        *SUBJECTS,
        *OTHERS,
    }
    assert max(one.attempts for one in found.values()) == 2
    assert found["poor"].error.kind == "SubjectError"
    assert result.exit_code == 3
    [cause] = result.summary.failures
    assert (cause.kind, cause.count, cause.subjects) == ("SubjectError", 1, ("poor",))


def test_failed_jsonl_is_a_manifest_of_the_failed(sabotaged):
    job, _, _ = sabotaged
    failed = Store(job.storage).local_path(f"jobs/{job.id}/failed.jsonl")
    rows, problems = manifest.read(str(failed))
    assert problems == []
    assert [subject.id for subject, _ in rows] == ["poor"]


def test_weights_depend_on_neither_lane_nor_company_nor_kills(
    finished, sabotaged, ray_session, tmp_path
):
    """Trained last of five in a lane, alone, and in two lanes that were killed: the same bits."""
    last_of_five, (many, _, _) = finished[0], sabotaged
    found = [Registry(Store(job.storage)).find("eve") for job in (last_of_five, many)]
    assert found[0].fingerprint == found[1].fingerprint
    photos = Path(str(last_of_five.subjects)) / "eve"
    eve = Subject(
        id="eve",
        class_noun="dog",
        identifier=found[0].identifier,
        images=tuple(str(photos / f"{number}.png") for number in range(3)),
    )
    alone = last_of_five.model_copy(update={"storage": str(tmp_path / "runs"), "subjects": (eve,)})
    assert run_job(alone).exit_code == 0
    assert weights_of(alone, "eve") == weights_of(last_of_five, "eve")
    assert weights_of(many, "eve") == weights_of(last_of_five, "eve")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_and_keeps_what_was_published(
    ray_session, tiny_base, tmp_path, small_disk
):
    job = load_job(tmp_path, tiny_base, SUBJECTS, storage=str(small_disk / "runs"))
    store = Store(job.storage)
    assert run_job(job).exit_code == 0
    published = {record.name for record in Registry(store).list()}
    (small_disk / "filler").write_bytes(b"x" * (shutil.disk_usage(small_disk).free - 60_000))
    more = job.model_copy(update={"recipe": job.recipe.model_copy(update={"seed": 1})})
    try:
        result = run_job(more)
        assert result.exit_code == 3
        told = " ".join(cause.example for cause in result.summary.failures)
    except StoreError as exc:
        told = str(exc)
    assert "no space is left" in told
    for name in published:
        assert weights_of(job, name)


def test_two_workers_with_zero_train_one_subject_together(
    finished, ray_session, tiny_base, tmp_path
):
    """DeepSpeed ZeRO-2 under Ray Train: the losses are those of plain torch.

    Both workers give a poisoned subject up together, and go on with the next.
    """
    plain, _ = finished
    sharded = load_job(
        tmp_path, tiny_base, SUBJECTS, recipe=RECIPE,
        resources={"gpus_per_subject": 2, "zero_stage": 2, "checkpoint_every": 30},
    )  # fmt: skip
    result = run_job(sharded, watch=Poisoner(tmp_path / "photos" / "ace"))
    [cause] = result.summary.failures
    assert (cause.kind, cause.subjects) == ("SubjectError", ("ace",))
    assert result.summary.counts["published"] == len(SUBJECTS) - 1
    records = [Registry(Store(job.storage)).find("bob") for job in (sharded, plain)]
    ours, theirs = ([point[1] for point in record.loss] for record in records)
    # Rounding differs from the first step on, and training amplifies it.
    assert ours[:20] == pytest.approx(theirs[:20], rel=1e-3)
    assert Store(sharded.storage).names(f"jobs/{sharded.id}/checkpoints") == []
