"""Checkpoints: which one is restored, which are ignored, and which are removed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing, nn

from dbray.lanes.checkpoint import Checkpoint, forget_checkpoints
from dbray.spec.recipe import Recipe
from dbray.spec.resources import Resources
from dbray.storage.store import COMMITTED, Store
from dbray.training.batches import Share
from dbray.training.curve import LossPoint
from dbray.training.engine import make_engine
from dbray.training.loop import Progress

CURVE = (LossPoint(1, 0.5, 0.3, 0.2), LossPoint(2, 0.4, 0.25, 0.15))


def make(num_features=4):
    torch.manual_seed(0)
    return make_engine(nn.Linear(num_features, 2), Recipe(), Resources(), torch.device("cpu"))


def step(engine):
    engine.step(engine(torch.ones(3, 4)).square().mean())


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path))


def checkpoint_of(store, zero_stage=0):
    return Checkpoint(store, "job", "abc", Share(), zero_stage)


@pytest.fixture
def saved(store):
    """Checkpoints of two steps, as after a kill between commit and removal, and the weights."""
    engine, weights = make(), []
    for number in (1, 2):
        step(engine)
        weights.append(engine.weights())
        folder = store.local_path("jobs/job/checkpoints/abc")
        before = {path.name: path for path in folder.iterdir()} if folder.exists() else {}
        kept = [(path, path.rename(folder / f"kept-{name}")) for name, path in before.items()]
        checkpoint_of(store).save(engine.state(), Progress(number, CURVE[:number]))
        for path, elsewhere in kept:
            elsewhere.rename(path)
    return weights


def state_file(store, number):
    return store.local_path(f"jobs/job/checkpoints/abc/{number:08d}-of-1-zero-0/rank-0")


def test_the_newest_checkpoint_is_restored(store, saved):
    engine = make()
    assert checkpoint_of(store).restore(engine) == Progress(2, CURVE)
    assert torch.equal(engine.weights()["weight"], saved[1]["weight"])


def test_saving_removes_the_previous_checkpoint(store, saved):
    engine = make()
    checkpoint_of(store).save(engine.state(), Progress(3, CURVE))
    assert store.names("jobs/job/checkpoints/abc") == ["00000003-of-1-zero-0"]


@pytest.mark.parametrize("damage", ["truncated", "uncommitted", "gone"])
def test_a_damaged_checkpoint_loses_only_its_steps(store, saved, damage):
    folder = state_file(store, 2)
    if damage == "truncated":
        file = folder / "state.safetensors"
        file.write_bytes(file.read_bytes()[:-10])
    else:
        (folder / (COMMITTED if damage == "uncommitted" else "state.safetensors")).unlink()
    engine = make()
    assert checkpoint_of(store).restore(engine) == Progress(1, CURVE[:1])
    assert torch.equal(engine.weights()["weight"], saved[0]["weight"])
    assert not folder.exists()


def test_a_checkpoint_of_another_engine_is_ignored(store):
    other = make(num_features=5)
    checkpoint_of(store).save(other.state(), Progress(2, CURVE))
    engine = make()
    before = engine.weights()
    assert checkpoint_of(store).restore(engine) == Progress()
    assert torch.equal(engine.weights()["weight"], before["weight"])
    assert checkpoint_of(store, zero_stage=1).restore(engine) == Progress()


def test_a_checkpoint_of_another_number_of_slots_is_ignored(store, saved):
    packed = Checkpoint(store, "job", "abc", Share(), 0, num_slots=2)
    assert packed.restore(make()) == Progress()
    packed.save(make().state(), Progress(1, CURVE[:1]))
    assert packed.restore(make()) == Progress(1, CURVE[:1])
    assert checkpoint_of(store).restore(make()) == Progress(2, CURVE)


def test_without_a_checkpoint_training_starts_at_the_beginning(store):
    assert checkpoint_of(store).restore(make()) == Progress()


def test_only_checkpoints_that_may_be_continued_are_kept(store, saved):
    Checkpoint(store, "job", "old", Share(), 0).save(make().state(), Progress(1, CURVE))
    forget_checkpoints(store, "job", {"abc"})
    assert store.names("jobs/job/checkpoints") == ["abc"]
    forget_checkpoints(store, "job", set())
    assert store.names("jobs/job/checkpoints") == []


def be_a_rank(rank: int, folder: Path) -> None:
    """Run one of two ranks that share an engine's state; the second has lost its checkpoint."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    torch.manual_seed(0)
    engine = make_engine(nn.Linear(4, 2), Recipe(), Resources(zero_stage=1), torch.device("cpu"))
    base = engine.weights()
    store = Store(str(folder))
    checkpoint = Checkpoint(store, "job", "abc", Share(rank, 2), 1)
    step(engine)
    checkpoint.save(engine.state(), Progress(1, CURVE[:1]))
    if rank == 1:
        [state] = folder.rglob("rank-1/state.safetensors")
        state.write_bytes(b"rotten")
    dist.barrier()
    engine.reset()
    assert checkpoint.restore(engine) == Progress()
    weights = engine.weights()
    assert all(torch.equal(base[name], weights[name]) for name in base)
    step(engine)
    dist.destroy_process_group()


@pytest.mark.timeout(60)
def test_no_rank_loads_a_checkpoint_that_one_rank_lost(tmp_path):
    multiprocessing.spawn(be_a_rank, (tmp_path,), nprocs=2)
