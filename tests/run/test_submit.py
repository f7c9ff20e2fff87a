"""Jobs sent to a running cluster: packing, errors, and one real submission."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from kit.embedders import build_dino
from kit.serving import free_port
from kit.worlds import write_job

from dbray.cli import main
from dbray.errors import SpecError
from dbray.planning.checks import check_file
from dbray.planning.plan import make_plan
from dbray.run import submit
from dbray.run.journal import Journal
from dbray.storage.store import Store

SUBJECTS = {"ace": "cat", "bob": "dog"}


def test_a_packed_job_is_the_same_job(tiny_base, tmp_path):
    job_file = write_job(tmp_path / "here", tiny_base, SUBJECTS)
    ready, folder = check_file(job_file).ready(), tmp_path / "package"
    folder.mkdir()
    submit.pack(job_file, ready, folder)
    (tmp_path / "here").rename(tmp_path / "gone")
    packed = check_file(folder / "job.yaml").ready()
    assert packed.job.model_copy(update={"subjects": ready.job.subjects}) == ready.job
    digests = [[one.image_digests for one in job.subjects] for job in (packed, ready)]
    assert digests[0] == digests[1]
    images = [image for one in packed.subjects for image in one.subject.images]
    assert all(Path(image).is_relative_to(folder) for image in images)


def test_relative_paths_of_embedders_are_packed_as_they_resolve_here(tiny_base, tmp_path):
    build_dino(tmp_path / "here/embedder")
    scoring = {"embedder": "./embedder", "images": 2}
    job_file = write_job(tmp_path / "here", tiny_base, SUBJECTS, scoring=scoring)
    ready, folder = check_file(job_file).ready(), tmp_path / "package"
    folder.mkdir()
    submit.pack(job_file, ready, folder)
    assert check_file(folder / "job.yaml").ready().job.scoring == ready.job.scoring


def test_skipped_subjects_are_packed_and_skipped_again(tiny_base, tmp_path):
    job_file = write_job(tmp_path / "here", tiny_base, SUBJECTS)
    (tmp_path / "here/photos/ace/0.png").write_text("not an image")
    (tmp_path / "here/photos/bob/1.png").write_bytes(b"")
    with pytest.raises(SpecError):
        check_file(job_file).ready(skip_invalid=True)  # no subject is left
    (tmp_path / "here/photos/bob/1.png").unlink()
    ready, folder = check_file(job_file).ready(skip_invalid=True), tmp_path / "package"
    folder.mkdir()
    submit.pack(job_file, ready, folder)
    packed = check_file(folder / "job.yaml").ready(skip_invalid=True)
    for one in (ready, packed):
        assert [checked.subject.id for checked in one.subjects] == ["bob"]
        assert [invalid.id for invalid in one.invalid] == ["ace"]


class Server:
    """A fake of the job server that keeps its requests."""

    def submit(self, folder, job_id, options):
        self.sent = job_id, options
        return f"dbray-{job_id}"


def submitted(monkeypatch, job_file, *flags):
    """Run `dbray submit`; return its exit code, and the request to the job server."""
    server = Server()
    monkeypatch.setattr(submit, "JobServer", lambda _: server)
    address = ["--address", "http://127.0.0.1:8265", "--no-wait"]
    return main(["submit", str(job_file), *address, *flags]), getattr(server, "sent", None)


def test_submit_skips_invalid_subjects_only_if_asked(tiny_base, tmp_path, monkeypatch, capsys):
    job_file = write_job(tmp_path / "pets", tiny_base, SUBJECTS)
    (tmp_path / "pets/photos/ace/0.png").write_text("not an image")
    assert submitted(monkeypatch, job_file) == (2, None)
    code, sent = submitted(monkeypatch, job_file, "--skip-invalid", "--max-failures", "1")
    assert (code, sent) == (0, ("pets", ["--max-failures", "1", "--skip-invalid"]))
    assert "0.png" in capsys.readouterr().out


def test_submit_rejects_the_id_of_another_jobs_record(tiny_base, tmp_path, monkeypatch, capsys):
    storage = {"storage": str(tmp_path / "runs"), "id": "same"}
    write_job(tmp_path / "a", tiny_base, {"rex": "dog"}, **storage)
    job_file = write_job(tmp_path / "b", tiny_base, SUBJECTS, **storage)
    ready = check_file(tmp_path / "a/job.yaml").ready()
    store = Store(ready.job.storage)
    Journal(store, "same").begin(make_plan(ready, store), "0")
    assert submitted(monkeypatch, job_file) == (2, None)
    assert "job 'same' in" in capsys.readouterr().err


def test_too_many_photographs_are_rejected_with_their_size(tiny_base, tmp_path, monkeypatch):
    job_file = write_job(tmp_path / "here", tiny_base, SUBJECTS)
    monkeypatch.setattr(submit, "MAX_BYTES", 1024)
    with pytest.raises(SpecError, match=r"take \d+ MiB.*\n.*list them in a manifest by URI"):
        submit.pack(job_file, check_file(job_file).ready(), tmp_path / "package")
    assert not (tmp_path / "package").exists()


@pytest.mark.parametrize(
    ("storage", "address"),
    [
        ("/data/runs", "http://127.0.0.1:8265"),
        ("/data/runs", "http://localhost:8265"),
        ("s3://bucket/runs", "http://198.51.100.7:8265"),
        ("file:///mnt/runs", "http://198.51.100.7:8265"),
    ],
)
def test_storage_that_the_cluster_reaches_is_accepted(storage, address):
    submit.check_storage(storage, address)


def test_a_local_folder_is_rejected_for_a_remote_cluster():
    with pytest.raises(SpecError, match="all nodes reach, such as s3://bucket/runs"):
        submit.check_storage("/data/runs", "http://198.51.100.7:8265")


def test_an_address_without_a_job_server_is_a_spec_error():
    with pytest.raises(SpecError, match="address of the cluster's dashboard"):
        submit.JobServer(f"http://127.0.0.1:{free_port()}")


@pytest.fixture
def head(tmp_path):
    """A head with a job server that requires a token; returns its URL and the environment."""
    port, gcs_port, agent_port = free_port(), free_port(), free_port()
    token = tmp_path / "token"
    token.write_text("0123456789abcdef" * 4)
    env = {
        **os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    env.pop("RAY_ADDRESS", None)
    command = [
        "ray", "start", "--head", "--block", "--num-cpus=2", f"--port={gcs_port}",
        f"--dashboard-port={port}", "--object-store-memory=157286400",
        # By default, all Rays of a machine want the same one, and jobs go through it.
        f"--dashboard-agent-listen-port={agent_port}",
    ]  # fmt: skip
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "Ray runtime started" in line:
            break
    yield f"http://127.0.0.1:{port}", env
    process.terminate()
    process.communicate()


def dbray(env, *words, **kwargs):
    # RAY_AUTH_MODE is for dbray to set.
    env = {name: value for name, value in env.items() if name != "RAY_AUTH_MODE"}
    command = [sys.executable, "-m", "dbray", *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, **kwargs)


@pytest.mark.slow
@pytest.mark.timeout(290)
def test_a_job_is_submitted_followed_listed_and_stopped(head, tiny_base, tmp_path):
    address, env = head
    bare = {"recipe": {"steps": 8, "prior_weight": 0.0}, "previews": {"prompts": []}}
    job_file = write_job(tmp_path / "job", tiny_base, SUBJECTS, **bare)
    while True:  # the head accepts no jobs before its agent runs
        done = dbray(env, "submit", str(job_file), "--address", address)
        if "No available agent" not in done.stderr:
            break
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "published ace@" in done.stdout
    assert "finished: 2 published" in done.stdout
    assert len(list((tmp_path / "job" / "runs" / "models").glob("*/*/_COMMITTED"))) == 2

    bare["recipe"]["steps"] = 10**5  # the most
    endless = write_job(tmp_path / "endless", tiny_base, SUBJECTS, **bare)
    begun = dbray(env, "submit", str(endless), "--address", address, "--no-wait")
    assert (begun.returncode, begun.stderr) == (0, "")
    [submission] = re.findall(r"submitted (\S+)", begun.stdout)
    assert f"dbray stop {submission} --address {address}" in begun.stdout
    assert "is stopping" in dbray(env, "stop", submission, "--address", address).stdout
    states = {}
    while states.get(submission) in (None, "running", "pending"):
        listed = dbray(env, "status", "--address", address).stdout
        states = dict(re.findall(r"(dbray-[\w-]+) +(\w+)", listed))
    assert sorted(states.values()) == ["stopped", "succeeded"]
