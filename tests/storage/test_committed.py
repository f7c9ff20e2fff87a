"""Reading a committed folder: its marker is read once, its files are verified."""

from __future__ import annotations

import pytest
from kit.storage import count_requests
from pyarrow import fs as pafs

from dbray.errors import DigestMismatch, FileMissing, StoreError
from dbray.storage.committed import Committed
from dbray.storage.store import COMMITTED, Store


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "runs"))


def test_the_marker_is_read_once(store, tmp_path, monkeypatch):
    store.commit("m/1", {"a": b"aaaa", "b": b"bbbb"})
    requests = count_requests(monkeypatch)
    folder = Committed(store, "m/1")
    assert requests == []
    assert set(folder.files) == {"a", "b"}
    assert folder.read("a") == b"aaaa"
    assert folder.fetch(["b"], tmp_path / "cache") == {"b": tmp_path / "runs/m/1/b"}
    assert requests == [("open", f"m/1/{COMMITTED}"), ("open", "m/1/a"), ("open", "m/1/b")]


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_a_folder_without_a_marker_is_missing_not_damaged(store, kind):
    store = store if kind == "local" else Store("bucket", pafs._MockFileSystem())
    store.write_bytes("m/1/a", b"aaaa")
    with pytest.raises(FileMissing, match="m/1/_COMMITTED does not exist"):
        Committed(store, "m/1").read("a")
    store.write_bytes(f"m/1/{COMMITTED}", b"{}")
    with pytest.raises(DigestMismatch, match="m/1/_COMMITTED is not a marker"):
        Committed(store, "m/1").read("a")


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_a_missing_file_in_the_marker_is_damage(store, kind):
    store = store if kind == "local" else Store("bucket", pafs._MockFileSystem())
    store.commit("m/1", {"a": b"aaaa"})
    store.remove("m/1/a")
    with pytest.raises(DigestMismatch, match="m/1/a was published but is missing"):
        Committed(store, "m/1").read("a")


def test_only_a_local_store_has_local_paths(store, tmp_path):
    store.commit("m/1", {"a": b"aaaa"})
    assert Committed(store, "m/1").local_paths(["a"]) == {"a": tmp_path / "runs/m/1/a"}
    remote = Store("bucket", pafs._MockFileSystem())
    remote.commit("m/1", {"a": b"aaaa"})
    with pytest.raises(StoreError, match="is not on this machine"):
        Committed(remote, "m/1").local_paths(["a"])
