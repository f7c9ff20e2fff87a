"""The main job with real Ray Data, Ray Train, registry and report: its laws and its failures."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from kit.processes import started
from kit.records import files_of
from kit.worlds import add_class_images, load_job, write_job, write_photos

from dbray import cluster
from dbray.cli import main
from dbray.errors import JobBusy, LaneLost, SpecError, StoreError, SubjectError, TooManyFailures
from dbray.hardware import Hardware
from dbray.lanes.leases import LeaseQueue
from dbray.planning.checks import check_job
from dbray.planning.plan import make_plan
from dbray.records import previews as layout
from dbray.records.models import Registry
from dbray.records.results import Failure, read_summary
from dbray.run import job as job_module
from dbray.run import phases, recorder
from dbray.run.job import run_job
from dbray.run.journal import Journal
from dbray.run.options import RunOptions
from dbray.run.previews import PreviewImages
from dbray.run.recorder import Recorder
from dbray.run.tally import Tally
from dbray.run.watch import Silence
from dbray.sampling.pool import SamplingPool
from dbray.spec.canon import utc_now
from dbray.spec.job import Job
from dbray.spec.subject import Subject
from dbray.storage.store import Store
from dbray.subjects import validation

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

RECIPE = {"steps": 40}
SUBJECTS = {"ace": "cat", "bob": "dog", "cid": "dog", "dot": "cat", "eve": "dog"}
NO_PREVIEWS = {"prompts": []}
BARE = {"recipe": {"steps": 8, "prior_weight": 0.0}, "previews": NO_PREVIEWS}
"""Training only."""


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
    assert result.summary.train_steps == 5 * 40
    assert result.summary.retry_command == "run_job(job, RunOptions(retry_failed=True))"


def test_a_record_describes_how_its_model_was_made(finished):
    job, _ = finished
    record = Registry(Store(job.storage)).find("bob")
    assert (record.class_noun, record.steps, record.base) == ("dog", 40, job.base)
    assert len(record.image_digests) == 3
    assert [point[0] for point in record.loss] == list(range(1, 41))
    assert {"lease", "encode", "reset", "train"} <= record.timings.keys()
    assert record.versions["torch"]


def test_previews_and_report_are_written(finished):
    job, result = finished
    store = Store(job.storage)
    previews = layout.annex(store, Registry(store).find("eve").name).read()
    assert previews is not None
    assert {"0.png", "1.png", "base-0.png", "base-1.png", "previews.json"} <= previews.keys()
    page = Path(result.report).read_text()
    assert all(subject_id in page for subject_id in SUBJECTS)


def test_previews_with_other_settings_are_made_again(finished, tmp_path):
    job, _ = finished
    store = Store(str(shutil.copytree(job.storage, tmp_path / "runs")))
    before = Registry(store).find("eve")
    prompts = ("a {subject} in the snow", *job.previews.prompts[1:])
    previews = job.previews.model_copy(update={"prompts": prompts})
    asked = job.model_copy(update={"storage": store.uri, "previews": previews})
    assert {outcome.status for outcome in run_job(asked).outcomes} == {"kept"}
    assert Registry(store).find("eve") == before
    described = json.loads(layout.annex(store, before.name).file("previews.json"))
    assert described["prompts"][0] == f"a {before.identifier} dog in the snow"


def test_an_unreadable_record_costs_only_its_previews(finished, tmp_path):
    ran, _ = finished
    store = Store(str(shutil.copytree(ran.storage, tmp_path / "runs")))
    previews = ran.previews.model_copy(update={"seed": 1})
    ready = check_job(ran.model_copy(update={"storage": store.uri, "previews": previews})).ready()
    plan, listener = make_plan(ready, store), Listener()
    bob = Registry(store).find("bob")
    store.write_bytes(f"models/bob/{bob.revision}/model.json", b"{")
    passed_on = Recorder(Tally(plan, ""), Journal(store, ran.id), listener)
    wanted = {one.record.id for one in PreviewImages(plan, passed_on).requests}
    assert wanted == SUBJECTS.keys() - {"bob"}
    [note] = listener.notes
    assert note.startswith("no previews of bob: ")


def test_running_again_keeps_everything_and_needs_no_cluster(finished):
    job, _ = finished
    before = files_of(job, "ace")
    result = run_job(job, RunOptions(address="ray://nowhere.invalid:1"))
    assert {outcome.status for outcome in result.outcomes} == {"kept"}
    assert result.exit_code == 0
    assert files_of(job, "ace") == before


def test_a_damaged_summary_is_rewritten(finished):
    job, _ = finished
    store = Store(job.storage)
    store.write_bytes(f"jobs/{job.id}/summary.json", b'{"state": "fini')
    assert run_job(job).exit_code == 0
    assert read_summary(store, job.id).state == "finished"


def test_a_second_concurrent_run_is_rejected(finished):
    job, _ = finished
    with Journal(Store(job.storage), job.id).hold(), pytest.raises(JobBusy, match="being run by"):
        run_job(job)


def test_invalid_input_runs_nothing(tmp_path, tiny_base):
    job = load_job(tmp_path, tiny_base, SUBJECTS)
    (tmp_path / "photos" / "bob" / "0.png").write_bytes(b"no image")
    with pytest.raises(SpecError, match=r"0\.png"):
        run_job(job, RunOptions(address="ray://nowhere.invalid:1"))
    assert not (tmp_path / "runs" / "jobs").exists()


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("nonsense", "Invalid address"),
        ("localhost:99999", "out of range"),
        ("no-such-module://localhost", "no-such-module"),
        ("{closed}", "refused"),
        ("ray://{closed}", "refused"),
    ],
)
def test_an_address_without_a_cluster_is_reported(ray_session, address, reason):
    with socket.socket() as bound:  # bound, but not listening
        bound.bind(("127.0.0.1", 0))
        address = address.format(closed=f"127.0.0.1:{bound.getsockname()[1]}")
        with pytest.raises(SpecError, match=f"(?s){reason}.*fix: give --address") as caught:
            cluster._join(address, lambda _: None)
    assert address in str(caught.value)


def test_a_run_that_waits_for_a_cluster_is_not_dead(tiny_base, tmp_path, monkeypatch):
    job = load_job(tmp_path, tiny_base, {"ace": "cat"}, **BARE)
    store = Store(job.storage)
    summary = lambda: read_summary(store, job.id)  # noqa: E731

    @contextmanager
    def deaf(address, note):
        first = summary()
        while summary().wall_seconds == first.wall_seconds:
            time.sleep(0.05)
        raise SpecError([])
        yield

    monkeypatch.setattr(job_module, "connected", deaf)
    monkeypatch.setattr(recorder, "_HEARTBEAT_SECONDS", 0.1)
    with pytest.raises(SpecError):
        run_job(job)
    assert summary().state == "broken"


def test_the_end_of_a_run_is_written_before_ray_shuts_down(tiny_base, tmp_path, monkeypatch):
    job = load_job(tmp_path, tiny_base, {"ace": "cat"}, **BARE)
    at_the_end = []

    @contextmanager
    def connected(address, note):
        try:
            yield
        finally:
            at_the_end.append(read_summary(Store(job.storage), job.id).state)

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(job_module, "connected", connected)
    monkeypatch.setattr(phases, "hardware", interrupted)
    assert run_job(job).state == "interrupted"
    assert at_the_end == ["interrupted"]


def test_class_images_are_made_on_the_device_of_the_job(tiny_base, tmp_path, monkeypatch):
    asked = {"device": "cuda", "prior_actors": 3, "threads_per_worker": 2}
    job = load_job(tmp_path, tiny_base, {"ace": "cat"}, resources=asked)
    pools = []

    def interrupted(store, base, plans, pool, *_):
        pools.append(pool)
        raise KeyboardInterrupt

    monkeypatch.setattr(job_module, "connected", lambda address, note: nullcontext())
    monkeypatch.setattr(phases, "hardware", lambda: Hardware(num_cpus=8, num_gpus=0))
    monkeypatch.setattr(phases, "make_priors", interrupted)
    run_job(job)
    assert pools == [SamplingPool(num_actors=3, threads=2, device="cuda")]


class Onlooker(Silence):
    """Records the events of a run, and how many prior sets are complete when a subject ends."""

    def __init__(self, store: Store) -> None:
        self.events: list[str] = []
        self._store = store

    def progress(self, phase, done, total, detail=""):
        if self.events[-1:] != [phase]:
            self.events.append(phase)
        if phase == "training":
            assert total == 2

    def ended(self, outcome):
        folders = [f"priors/{name}" for name in self._store.names("priors")]
        num_complete = sum(self._store.is_committed(folder) for folder in folders)
        self.events.append(f"{outcome.id} {num_complete}")


def test_subjects_are_trained_before_the_class_images_of_later_ones_are_made(
    finished, ray_session, tiny_base, tmp_path, monkeypatch
):
    monkeypatch.setattr(phases, "end_of_turn", lambda seconds: lambda done, total: True)
    subjects = {name: SUBJECTS[name] for name in ("ace", "bob")}
    job = load_job(tmp_path, tiny_base, subjects, recipe=RECIPE, previews={"prompts": []})
    onlooker = Onlooker(Store(job.storage))
    result = run_job(job, watch=onlooker)
    # Either may come first: Ray Data promises no order.
    first, second = (name for name in map(str.split, onlooker.events) if name[0] in subjects)
    assert onlooker.events == [
        "class images", "training", f"{first[0]} 1", "training", "class images", "training",
        f"{second[0]} 2", "training",
    ]  # fmt: skip
    for name in subjects:
        assert files_of(job, name) == files_of(finished[0], name)
    summary = result.summary
    assert (summary.counts["published"], summary.prior_sets, summary.pending) == (2, 2, None)
    assert set(summary.phase_seconds) == {"class images", "training"}


class Listener(Silence):
    """Records the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text):
        self.notes.append(text)


def test_warnings_are_shown_and_a_cluster_without_room_is_rejected(
    ray_session, tiny_base, tmp_path
):
    job = load_job(tmp_path, tiny_base, {"ace": "cat"}, resources={"threads_per_worker": 64,
                   "lanes": None})  # fmt: skip
    (tmp_path / "photos" / "ace" / "2.png").unlink()
    listener = Listener()
    with pytest.raises(SpecError, match="64 CPU"):
        run_job(job, watch=listener)
    assert any("2 images" in note for note in listener.notes)


@pytest.mark.slow
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
    store.remove(f"jobs/{job.id}/report.html")
    place, _, options = s3_uri.partition("?")
    assert main(["report", f"{place}/jobs/{job.id}?{options}"]) == 0
    assert store.exists(f"jobs/{job.id}/report.html")


@pytest.mark.slow
def test_a_relative_storage_is_relative_to_the_working_folder(
    ray_session, tiny_base, tmp_path, monkeypatch
):
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
    """Also kills the lanes' workers in training."""

    killed = 0

    def progress(self, phase, done, total, detail=""):
        super().progress(phase, done, total, detail)
        if phase == "training" and detail and not self.killed:
            for child in started("RayTrainWorker"):
                child.kill()
                self.killed += 1


class Vanisher(Listener):
    """Removes the base after the job is planned."""

    def __init__(self, base: Path) -> None:
        super().__init__()
        self._base = base

    def note(self, text):
        super().note(text)
        if self._base.exists():
            shutil.rmtree(self._base)


def test_lanes_that_cannot_start_report_why(ray_session, tiny_base, tmp_path):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    subjects = {"ace": "cat", "bob": "cat"}
    job = load_job(tmp_path, base, subjects, resources={"max_lane_failures": 0}, **BARE)
    (tmp_path / "photos" / "ace" / "2.png").unlink()  # gives a warning in planning
    vanisher = Vanisher(base)
    with pytest.raises(LaneLost, match=f"no lane is left.*{base}") as caught:
        run_job(job, watch=vanisher)
    assert "Traceback" not in str(caught.value)
    assert any(note.startswith("lost lane-0") and str(base) in note for note in vanisher.notes)
    store = Store(job.storage)
    summary = read_summary(store, job.id)
    assert (summary.state, summary.error) == ("broken", str(caught.value))
    assert summary.counts["unfinished"] == 2
    assert "no lane is left" in store.read_bytes(f"jobs/{job.id}/report.html").decode()


class Assassin(Silence):
    """Kills the process of the queue."""

    def progress(self, phase, done, total, detail=""):
        [queue] = started("LeaseQueue")
        queue.kill()
        queue.wait()


def test_a_lost_queue_ends_the_run_with_an_error(ray_session, tiny_base, tmp_path):
    job = load_job(tmp_path, tiny_base, {"ace": "cat"}, **BARE)
    with pytest.raises(LaneLost, match="assigns the subjects died"):
        run_job(job, watch=Assassin())
    summary = read_summary(Store(job.storage), job.id)
    assert summary.state == "broken"
    assert "assigns the subjects died" in summary.error


@contextmanager
def failing_lanes(plan, *_):
    """Stands in for lanes that cannot read the photographs of the first subject."""
    queue = LeaseQueue(plan.to_train, 2, 10.0)
    (leased, _), _ = queue.lease("lane-0")
    queue.fail("lane-0", leased.subject.id, Failure.of(SubjectError("no image")))
    yield SimpleNamespace(snapshots=lambda: [queue.snapshot(0)])


def test_a_job_stops_at_max_failures(tiny_base, tmp_path, monkeypatch):
    job = load_job(tmp_path, tiny_base, SUBJECTS, **BARE)
    monkeypatch.setattr(job_module, "connected", lambda address, note: nullcontext())
    monkeypatch.setattr(phases, "hardware", lambda: Hardware(num_cpus=8, num_gpus=0))
    monkeypatch.setattr(phases, "open_lanes", failing_lanes)
    check_stopped(run_job(job, RunOptions(max_failures=0)))


@pytest.mark.slow
def test_lanes_are_stopped_at_max_failures(ray_session, tiny_base, tmp_path):
    job = load_job(tmp_path, tiny_base, SUBJECTS, **BARE)
    check_stopped(run_job(job, RunOptions(max_failures=0), Poisoner(tmp_path / "photos" / "ace")))


def check_stopped(result):
    assert (result.state, result.exit_code) == ("stopped", TooManyFailures.exit_code)
    assert result.summary.counts["failed"] == 1
    assert "--max-failures 0" in result.summary.error
    assert "too many subjects failed" in Path(result.report).read_text()


@pytest.fixture(scope="module")
def sabotaged(ray_session, tiny_base, tmp_path_factory):
    """Five subjects and a poisoned one through two lanes, whose workers are killed once."""
    folder = tmp_path_factory.mktemp("two-lanes")
    job = load_job(folder, tiny_base, {**SUBJECTS, "poor": "dog"}, recipe=RECIPE,
                   previews=NO_PREVIEWS, resources={"lanes": 2})  # fmt: skip
    add_class_images(job)
    saboteur = Saboteur(folder / "photos" / "poor")
    result = run_job(job, watch=saboteur)
    return job, result, saboteur


def test_a_killed_lane_and_a_poisoned_subject_do_not_stop_the_job(sabotaged):
    _, result, saboteur = sabotaged
    assert saboteur.killed
    found = {outcome.id: outcome for outcome in result.outcomes}
    assert {name for name, one in found.items() if one.status == "published"} == set(SUBJECTS)
    assert max(one.attempts for one in found.values()) == 2
    assert found["poor"].error.kind == "SubjectError"
    assert result.exit_code == 3
    [cause] = result.summary.failures
    assert (cause.kind, cause.count, cause.subjects) == ("SubjectError", 1, ("poor",))


def test_failed_jsonl_is_a_manifest_of_the_failed_subjects(sabotaged):
    job, _, _ = sabotaged
    failed = Store(job.storage).local_path(f"jobs/{job.id}/failed.jsonl")
    rows, problems = validation.read(str(failed))
    assert problems == []
    assert [subject.id for subject, _ in rows] == ["poor"]


def test_weights_are_independent_of_lanes_other_subjects_and_kills(
    finished, sabotaged, ray_session, tmp_path
):
    """Training as the last of five, alone, and in two killed lanes gives the same bits."""
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
    alone = last_of_five.model_copy(
        update={"storage": str(tmp_path / "runs"), "subjects": (eve,), "previews": many.previews}
    )
    add_class_images(alone)
    assert run_job(alone).exit_code == 0
    assert files_of(alone, "eve") == files_of(last_of_five, "eve")
    assert files_of(many, "eve") == files_of(last_of_five, "eve")


def test_retry_failed_retries_failures_that_would_repeat(sabotaged, ray_session):
    job, _, _ = sabotaged
    photos = Path(str(job.subjects))
    shutil.rmtree(photos / "poor")
    write_photos(photos, {"poor": "dog"})
    again = run_job(job, RunOptions(address="ray://nowhere.invalid:1"))
    assert again.exit_code == 3
    [cause] = again.summary.failures
    assert (cause.kind, cause.subjects) == ("SubjectError", ("poor",))
    tried = run_job(job, RunOptions(retry_failed=True, command="dbray run 'my job.yaml'"))
    assert tried.exit_code == 0
    assert tried.summary.counts["published"] == 1
    assert tried.summary.retry_command == "dbray run 'my job.yaml' --retry-failed"
    assert not Store(job.storage).exists(f"jobs/{job.id}/failed.jsonl")


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


def test_a_full_disk_is_reported_and_published_models_stay(
    ray_session, tiny_base, tmp_path, small_disk
):
    job = load_job(tmp_path, tiny_base, SUBJECTS, storage=str(small_disk / "runs"), **BARE)
    store = Store(job.storage)
    assert run_job(job).exit_code == 0
    published = {record.name for record in Registry(store).list()}
    (small_disk / "filler").write_bytes(b"x" * (shutil.disk_usage(small_disk).free - 60_000))
    more = job.model_copy(update={"recipe": job.recipe.model_copy(update={"seed": 1})})
    try:
        result = run_job(more)
        assert result.exit_code == 3
        message = " ".join(cause.example for cause in result.summary.failures)
    except StoreError as exc:
        message = str(exc)
    assert "no space is left" in message
    for name in published:
        assert files_of(job, name)


@pytest.mark.slow
def test_two_workers_with_zero_train_one_subject_together(
    finished, ray_session, tiny_base, tmp_path
):
    """DeepSpeed ZeRO-2 under Ray Train: the losses are those of plain torch.

    Both workers give a poisoned subject up together, and continue with the next.
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


@pytest.mark.slow
def test_a_failure_of_one_worker_does_not_block_the_others(
    ray_session, tiny_base, tmp_path, s3_server, s3_uri, monkeypatch
):
    """A photograph is missing once: for one of two workers, in the first attempt only."""
    server, objects = s3_server
    write_photos(tmp_path, {"ace": "cat"})
    place, options = s3_uri.split("?")
    for number in range(3):
        objects[f"team/runs/{number}.png"] = (tmp_path / "ace" / f"{number}.png").read_bytes()
    photos = tuple(f"{place}/{number}.png?{options}" for number in range(3))
    ace = Subject(id="ace", class_noun="cat", images=photos)
    job = load_job(tmp_path, tiny_base, {"ace": "cat"}, resources={"gpus_per_subject": 2}, **BARE)
    listener, ready = Listener(), check_job(job.model_copy(update={"subjects": (ace,)})).ready()
    away, found = ["team/runs/0.png"], server.RequestHandlerClass.do_GET

    def get(request):
        request.missing() if request.split()[1] in away and away.pop() else found(request)

    monkeypatch.setattr(server.RequestHandlerClass, "do_GET", get)
    [outcome] = run_job(ready, watch=listener).outcomes
    assert (outcome.status, outcome.attempts, away) == ("published", 2, [])
    assert listener.notes == []


def run_until(job_file: Path, line: str, end: Callable[[int], None]) -> int:
    """Run a job as its own process; end it when it prints a line; return its exit code."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dbray", "run", str(job_file)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        lines = iter(process.stdout)
        assert any(printed.startswith(line) for printed in lines)
        end(process.pid)
        for _ in lines:  # an unread pipe would block it
            pass
    return process.returncode


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(lambda pid: os.kill(pid, signal.SIGTERM), id="by a scheduler"),
        pytest.param(lambda pid: os.kill(pid, signal.SIGHUP), id="by its terminal, closed"),
        # A terminal signals all of its processes.
        pytest.param(lambda pid: os.killpg(pid, signal.SIGINT), id="by Ctrl-C"),
    ],
)
@pytest.mark.slow
def test_a_terminated_run_is_recorded_and_can_be_continued(ray_session, tiny_base, tmp_path, end):
    subjects = dict.fromkeys(("ace", "bob", "cid"), "dog")
    bare = {**BARE, "recipe": {"steps": 400, "prior_weight": 0.0}}
    job_file = write_job(tmp_path, tiny_base, subjects, **bare)
    job = Job.load(job_file)
    store = Store(job.storage)
    assert run_until(job_file, "published ", end) == 130
    summary = read_summary(store, job.id)
    assert (summary.state, summary.error) == ("interrupted", None)
    assert summary.counts["published"] > 0
    assert summary.counts["unfinished"] > 0
    assert "was interrupted" in store.read_bytes(f"jobs/{job.id}/report.html").decode()
    result = run_job(job)
    assert result.summary.counts["kept"] >= summary.counts["published"]
    assert result.exit_code == 0
