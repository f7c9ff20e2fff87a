"""A command prints only dbray's own output; a job runs without a reader and with a long TMPDIR."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from kit.worlds import write_job

from dbray.cli.noise import without_raylet_log
from dbray.records.models import Registry
from dbray.spec.job import Job
from dbray.storage.store import Store

RAY = (
    "[2026-11-26 03:31:36,943 E 17000 17000] core_worker.cc:2465: Actor with class name: "
    "'MapWorker(MapBatches(PartActor))' and ID: 'b56d' has constructor arguments in the object "
    "store and max_restarts > 0. If the arguments go out of scope, the actor restart will fail."
)
REAL = "[2026-11-26 03:31:36,943 E 17000 17000] core_worker.cc:9: The object store is full."

FILTERED = """
import os, sys
from dbray.cli.noise import quiet_stderr
with quiet_stderr():
    os.write(2, "\\n".join(sys.argv[1:]).encode() + b"\\n")
    {last}
print("after", file=sys.stderr)
"""


@pytest.mark.parametrize(("last", "after"), [("pass", "after\n"), ("os.abort()", "")])
def test_real_errors_and_the_last_output_of_a_crash_stay(last, after):
    command = [sys.executable, "-c", FILTERED.format(last=last), RAY, REAL]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr == f"{REAL}\n{after}"


def test_a_closed_standard_error_does_not_end_a_command():
    code = FILTERED.format(last="pass").replace("os.write", "print")
    done = subprocess.run(["bash", "-c", f"exec '{sys.executable}' -c '{code}' 2>&-"])
    assert done.returncode == 0


def test_the_log_of_a_dead_node_is_removed_from_rays_message():
    message = "(raylet) Raylet is terminated. Possible reasons include: (1) SIGKILL."
    log = "".join(f"\n    [2026-11-26 03:32:05,114 I 1 1] (raylet) line {n}" for n in range(20))
    text = f"{message} Last 20 lines of the Raylet logs:{log}\n"
    assert without_raylet_log(text) == f"{message}\n"
    assert without_raylet_log("published rex@1\n") == "published rex@1\n"


def test_generate_prints_nothing_but_its_files(tiny_base, tmp_path):
    words = ["generate", "base", "a dog", "--base", tiny_base, "--steps", "1", "-o", tmp_path]
    command = [sys.executable, "-m", "dbray", *map(str, words)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tmp_path}/base-0.png\n"


@pytest.mark.ray
@pytest.mark.slow
def test_a_normal_job_prints_only_dbrays_output(tiny_base, tmp_path):
    job_file = write_job(tmp_path / "job", tiny_base, {"ace": "cat"}, previews={"prompts": []})
    long = tmp_path / ("long-" * 20)  # too long for Ray's sockets
    long.mkdir()
    command = f"{sys.executable} -m dbray run {job_file} | head -1; exit ${{PIPESTATUS[0]}}"
    environment = os.environ | {"TMPDIR": str(long)}
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout == "the path of TMPDIR is too long for Ray's sockets: Ray uses /tmp\n"
    assert done.returncode == 0
    assert [one.id for one in Registry(Store(Job.load(job_file).storage)).list()] == ["ace"]
