"""Impossible storage is reported before anything runs, with a fix that works."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from kit.worlds import write_job

from dbray.planning.checks import check_file

SUBJECTS = {"rex": "dog", "tom": "cat"}


def problems_of(tmp_path, tiny_base, storage):
    job = write_job(tmp_path, tiny_base, SUBJECTS, storage=storage)
    return [(one.severity, one.what, one.fix) for one in check_file(job).problems]


@pytest.mark.parametrize(("storage", "what", "fix"), [
    ("C:\\runs\\pets", "C:\\runs\\pets is a Windows path", "/mnt/c/runs/pets"),
    ("c:/runs", "is a Windows path", "/mnt/c/runs"),
    ("runs\\pets", "Windows separators", "write '/' in place of '\\'"),
    ("s3:/bucket/runs", "a folder of this machine named 's3:'", "write s3://bucket/runs"),
    ("s3://", "names no bucket", "write s3://bucket/folder"),
    ("gs:///runs", "names no bucket", "write gs://bucket/folder"),
    ("file://mnt/runs", "names the machine 'mnt'", "write file:///mnt/runs"),
    ("s4://bucket", "s4:// is not supported as storage", "change 'storage'"),
    ("photos", "is inside the photographs' folder", "such as {tmp}/runs"),
    ("photos/runs", "is inside the photographs' folder", "such as {tmp}/runs"),
])  # fmt: skip
def test_an_impossible_storage_is_an_error(tmp_path, tiny_base, storage, what, fix):
    [problem] = problems_of(tmp_path, tiny_base, storage)
    assert problem[0] == "error"
    assert what in problem[1]
    assert fix.format(tmp=tmp_path) in problem[2]
    if "such as " in problem[2]:
        assert problems_of(tmp_path, tiny_base, problem[2].split("such as ")[1]) == []


@pytest.mark.parametrize(("storage", "what"), [
    (".", "are inside the storage"), ("mount/results/runs", "does not exist"),
])  # fmt: skip
def test_a_doubtful_storage_is_a_warning(tmp_path, tiny_base, storage, what):
    [problem] = problems_of(tmp_path, tiny_base, storage)
    assert problem[0] == "warning"
    assert what in problem[1]


@pytest.mark.parametrize("storage", ["runs", "s3://bucket/runs", "file:///mnt", "hdfs:///runs"])
def test_other_storage_is_accepted(tmp_path, tiny_base, storage):
    assert problems_of(tmp_path, tiny_base, storage) == []


def test_a_folder_without_write_permission_is_an_error(tmp_path):
    # Root may write everywhere, so the check runs as another user.
    (tmp_path / "shut").mkdir(mode=0o755)
    code = (
        "import os, sys; from dbray.planning.storage_place import check_storage\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "[one] = check_storage(sys.argv[1], None, (), str); print(one)"
    )
    if os.getuid():
        (tmp_path / "shut").chmod(0o555)
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(folder.stat().st_mode | 0o055)
    for storage in (str(tmp_path / "shut" / "runs"), f"file://{tmp_path}/shut/runs"):
        command = [sys.executable, "-c", code, storage]
        done = subprocess.run(command, capture_output=True, text=True)
        assert f"cannot be written: {tmp_path / 'shut'} is read-only for this user" in done.stdout
        assert "give this user write access" in done.stdout


@pytest.mark.parametrize("subjects", ["C:\\photos", "s3:/bucket/all.jsonl"])
def test_photographs_have_the_same_hints(tmp_path, tiny_base, subjects):
    job = write_job(tmp_path, tiny_base, SUBJECTS, subjects=subjects)
    [problem] = check_file(job).errors
    assert "Windows path" in problem.what or "write s3://bucket/all.jsonl" in problem.fix
