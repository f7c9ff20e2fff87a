"""A job whose subjects stop early, by real lanes, one of which is killed again and again."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from kit.embedders import BUILDERS
from kit.records import files_of
from kit.worlds import load_job

from dbray.lanes import worker
from dbray.lanes.checkpoint import Checkpoint
from dbray.lanes.fidelity import Watch
from dbray.records.models import Registry
from dbray.run.job import run_job
from dbray.storage.store import Store

STOP = {"every": 2, "patience": 5, "tolerance": 0.0, "max_drift": 2.0, "images": 1,
        "sampling_steps": 2, "learnt": 0.0}  # fmt: skip
KILLS = {"look": 2, "save": 2}
"""How often a lane gets so far before it is killed: after the second measurement, and so on."""


def die_once(folder: Path, name: str, turn: int) -> None:
    """Kill this process at its turn, which all processes of the test count together."""
    with (folder / name).open("a+") as file:
        file.write("x")
    if len((folder / name).read_text()) == turn:
        os.kill(os.getpid(), signal.SIGKILL)


def work_and_die(config):
    folder, look, save = Path(config["spec"].job.storage).parent, Watch.look, Checkpoint.save

    def looked(watch, step):
        found = look(watch, step)
        if step % STOP["every"] == 0:
            die_once(folder, "look", KILLS["look"])
        return found

    def saved(checkpoint, state, progress):
        save(checkpoint, state, progress)
        die_once(folder, "save", KILLS["save"])

    Watch.look, Checkpoint.save = looked, saved
    worker._work(config)


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    return str(BUILDERS["vit"](tmp_path_factory.mktemp("embedder") / "vit"))


@pytest.fixture
def run(ray_session, tiny_base, embedder):
    def run(folder: Path):
        job = load_job(
            folder, tiny_base, {"ace": "cat"}, previews={"prompts": []},
            recipe={"steps": 30, "learning_rate": 0.01, "stop": STOP},
            scoring={"embedder": embedder}, resources={"checkpoint_every": 3},
        )  # fmt: skip
        result = run_job(job)
        assert [one.status for one in result.outcomes] == ["published"]
        return job, Registry(Store(job.storage)).find("ace")

    return run


@pytest.mark.ray
@pytest.mark.slow
def test_kills_change_neither_what_is_published_nor_the_curve(run, tmp_path, monkeypatch):
    job, record = run(tmp_path / "whole")
    steps = [step for step, *_ in record.fidelity]
    assert steps == list(range(2, steps[-1] + 1, 2))
    assert record.steps in steps
    assert steps[-1] == min(30, record.steps + STOP["patience"] * STOP["every"])
    monkeypatch.setattr(worker, "_work", work_and_die)
    killed, resumed = run(tmp_path / "killed")
    assert files_of(killed, "ace") == files_of(job, "ace")
    assert [point[:3] for point in resumed.fidelity] == [point[:3] for point in record.fidelity]
    for name, turn in KILLS.items():
        assert len((tmp_path / "killed" / name).read_text()) > turn
