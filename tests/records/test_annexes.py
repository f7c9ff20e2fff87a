"""Annexes of a model: publishing, replacing, reading, damage and failures of storage."""

from __future__ import annotations

import logging

import pytest
from kit import records
from pyarrow import fs as pafs

from dbray.errors import ModelNotFound, RegistryError, StoreError
from dbray.records.annexes import Annex
from dbray.storage.committed import Committed
from dbray.storage.store import Store

FILES = {"0.png": b"one", "base-0.png": b"two", "notes.json": b"{}"}


@pytest.fixture(params=["local", "remote"])
def store(request, tmp_path):
    if request.param == "remote":
        return Store("bucket", pafs._MockFileSystem())
    return Store(str(tmp_path / "runs"))


@pytest.fixture
def annex(store):
    return Annex(store, published(store).name, "notes")


def published(store):
    record = records.record()
    records.Registry(store).publish(record, dict.fromkeys(record.files, b"weights"))
    return record


def path_of(name):
    return f"models/rex/{records.record().revision}/notes/{name}"


def test_an_annex_is_published_and_replaced_by_one_that_differs(store, annex):
    assert (annex.read(), annex.names(), annex.file("0.png")) == (None, [], None)
    annex.publish(FILES)
    annex.publish(FILES)
    assert annex.read() == FILES
    assert annex.names() == sorted(FILES)
    assert annex.file("base-0.png") == b"two"
    assert annex.file("../model.json") is None
    annex.publish({"0.png": b"new"})
    assert annex.read() == {"0.png": b"new"}
    assert Committed(store, f"models/rex/{records.record().revision}").damaged() == []


def test_annexes_of_one_model_are_independent(store, annex):
    other = Annex(store, records.record().name, "scores")
    annex.publish(FILES)
    assert other.read() is None
    other.publish({"scores.json": b"1"})
    assert annex.read() == FILES


def test_an_annex_needs_its_model(store):
    annex = Annex(store, records.record().name, "notes")
    with pytest.raises(ModelNotFound, match="is not published, so it cannot have notes"):
        annex.publish(FILES)
    assert store.names() == []


@pytest.mark.parametrize("model", ["rex", "rex@abcdef", "../x@0123456789ab", "rex@../../etc/pa"])
def test_invalid_model_names_are_rejected(store, model):
    with pytest.raises(RegistryError, match=r"is not a (model id|revision)"):
        Annex(store, model, "notes")


def test_has_reads_only_the_marker(store, annex, monkeypatch):
    assert not annex.has({})
    annex.publish(FILES)
    read = []
    real = Store.read_bytes
    monkeypatch.setattr(
        Store, "read_bytes", lambda self, path: (read.append(path), real(self, path))[1]
    )
    assert annex.has({"notes.json": b"{}"})
    assert not annex.has({"notes.json": b"[]"})
    assert not annex.has({"other.json": b"{}"})
    assert set(read) == {path_of("_COMMITTED")}


@pytest.mark.parametrize("damaged", ["0.png", "_COMMITTED"])
def test_a_damaged_annex_counts_as_missing_and_is_replaced(store, annex, damaged, caplog):
    annex.publish(FILES)
    store.write_bytes(path_of(damaged), b"rotten")
    with caplog.at_level(logging.WARNING):
        assert annex.read() is None
        assert annex.file("0.png") is None
    assert "damaged notes" in caplog.text
    annex.publish(FILES)
    assert annex.read() == FILES


def test_a_storage_failure_is_not_a_missing_annex(annex, monkeypatch):
    annex.publish(FILES)

    def fail(self, path):
        raise StoreError("storage is down")

    monkeypatch.setattr(Store, "read_bytes", fail)
    for look in (annex.read, annex.names, lambda: annex.file("0.png"), lambda: annex.has(FILES)):
        with pytest.raises(StoreError, match="storage is down"):
            look()
