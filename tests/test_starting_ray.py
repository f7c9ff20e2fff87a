"""If a local Ray cannot be started, each cause has a fix. tests/cli/test_noise.py starts Ray from a
folder whose path is too long."""

from __future__ import annotations

from collections import namedtuple

import pytest

from dbray import cluster
from dbray.errors import SpecError

Usage = namedtuple("Usage", "free")
TIMED_OUT = "The current node timed out during startup."


@pytest.mark.parametrize(
    ("error", "free_bytes", "num_notes", "fix"),
    [
        (NotADirectoryError(20, "Not a directory"), 2**30, 0,
         "set RAY_TMPDIR to a folder that can be written, instead of /somewhere"),
        (Exception(TIMED_OUT), 0, 0,
         "free space on the disk of /somewhere, or set RAY_TMPDIR to a folder on another disk"),
        (Exception(TIMED_OUT), 2**30, 1, "see Ray's logs in /somewhere/ray/session_latest/logs"),
    ],
)  # fmt: skip
def test_each_cause_has_its_fix(monkeypatch, error, free_bytes, num_notes, fix):
    def fail(**_):
        raise error

    monkeypatch.setenv("RAY_TMPDIR", "/somewhere")
    monkeypatch.setattr(cluster.ray, "init", fail)
    monkeypatch.setattr(cluster.shutil, "disk_usage", lambda _: Usage(free_bytes))
    notes = []
    with pytest.raises(SpecError) as caught:
        cluster.start_local(notes.append)
    [problem] = caught.value.problems
    assert problem.fix == fix
    assert len(notes) == num_notes  # a note announces a second attempt


def test_a_busy_machine_gets_a_second_attempt(monkeypatch):
    errors, notes = [Exception(TIMED_OUT)], []

    def start(**_):
        if errors:
            raise errors.pop()
        return "started"

    monkeypatch.setattr(cluster.ray, "init", start)
    assert cluster.start_local(notes.append) == "started"
    [note] = notes
    assert "trying once more" in note


def test_workers_of_a_joined_cluster_wait_passively(monkeypatch):
    asked = {}
    monkeypatch.setattr(cluster, "_check_listening", lambda _: None)
    monkeypatch.setattr(cluster.ray, "init", lambda **options: asked.update(options))
    cluster._join("head:6379", lambda _: None)
    assert asked["runtime_env"]["env_vars"]["OMP_WAIT_POLICY"]
