"""Disk and memory: needed compared with available."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
from kit.worlds import load_job

from dbray.errors import StoreError
from dbray.hardware import Hardware
from dbray.planning.checks import check_job
from dbray.planning.plan import make_plan
from dbray.planning.room import Room, check_disk, free_bytes, published_weight_bytes, shortages
from dbray.storage.store import Store


@pytest.fixture
def plan(tmp_path, tiny_base):
    job = load_job(tmp_path, tiny_base, {"rex": "dog", "tom": "cat"})
    return make_plan(check_job(job).ready(), Store(job.storage))


def test_the_disk_must_have_room_for_all_weights(plan, monkeypatch):
    store, needed = Store(plan.job.storage), published_weight_bytes(plan)
    assert needed == 2 * 2 * plan.base.num_parameters("unet")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed))
    check_disk(plan, store)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - 1))
    with pytest.raises(StoreError, match="no space is left for the models of 2 subjects"):
        check_disk(plan, store)


def test_free_space_is_known_before_the_storage_exists(tmp_path):
    assert free_bytes(Store(str(tmp_path / "not" / "there"))) > 0
    assert free_bytes(Store("s3://bucket/runs")) is None


def test_shortages_are_warnings():
    assert shortages(10, 10, Room(10, 10), "") == []
    assert shortages(10, 10, Room(None, None), "") == []
    found = shortages(11 * 2**20, 12 * 2**20, Room(2**20, 2**20), "use less")
    assert [(one.severity, one.where) for one in found] == [
        ("warning", "disk"), ("warning", "memory"),
    ]  # fmt: skip
    assert "11 MiB are needed, 1 MiB are free" in found[0].what
    assert found[1].fix == "use less"


def test_the_memory_of_this_machine_is_known():
    assert Hardware.local().memory_bytes > 2**20
