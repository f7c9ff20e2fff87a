"""A local disk: kills, full disks, symbolic links, and the error for each."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from dbray.errors import StoreError
from dbray.storage.committed import Committed
from dbray.storage.store import COMMITTED, Store, read_uri


@pytest.fixture
def local(tmp_path):
    return Store(str(tmp_path / "runs"))


def test_remove_deletes_the_marker_first(local, monkeypatch):
    def killed(path):
        raise KeyboardInterrupt

    local.commit("m/1", {"a": b"a"})
    monkeypatch.setattr("dbray.storage.local.delete", killed)
    with pytest.raises(KeyboardInterrupt):
        local.remove("m/1")
    assert local.exists("m/1/a")
    assert not local.is_committed("m/1")


def test_read_uri_rejects_everything_but_regular_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for path, reason in (
        (tmp_path, "is a folder"),
        (tmp_path / "pipe", "not a regular file"),
        ("/dev/zero", "not a regular file"),
        (tmp_path / "none.png", r"none\.png does not exist"),
        (tmp_path / "loop", "circle|not exist"),
        ("a\0b", "not a path"),
        ("", "not a path"),
    ):
        with pytest.raises(StoreError, match=reason):
            read_uri(str(path))


def test_symbolic_links_out_of_the_store_are_rejected(local, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    local.write_bytes("inside/a", b"a")
    root = Path(local.uri)
    (root / "link").symlink_to(outside)
    (root / "file").symlink_to(outside / "secret")
    (root / "fine").symlink_to("inside/a")
    for call in (
        lambda: local.read_bytes("link/secret"),
        lambda: local.read_bytes("file"),
        lambda: local.write_bytes("link/new", b""),
        lambda: local.remove("link/secret"),
        lambda: local.names("link"),
        lambda: local.commit("link/m", {"a": b""}),
        lambda: local.local_path("link"),
    ):
        with pytest.raises(StoreError, match="leads out"):
            call()
    assert local.read_bytes("fine") == b"a"
    local.write_bytes("file", b"mine now")
    local.remove("link")
    assert (outside / "secret").read_bytes() == b"secret"
    assert local.names() == ["file", "fine", "inside"]


def test_a_failed_commit_leaves_no_files(local, tmp_path):
    with pytest.raises(StoreError, match=r"weights\.bin does not exist"):
        local.commit("m/1", {"a": b"a", "w": tmp_path / "weights.bin"})
    assert not any((Path(local.uri) / "m").iterdir())


def test_a_full_disk_is_reported_and_published_files_stay(tmp_path):
    mount = tmp_path / "disk"
    mount.mkdir()
    size = ["-t", "tmpfs", "-o", "size=256k"]
    done = subprocess.run(["mount", *size, "tmpfs", str(mount)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("needs the right to mount")
    try:
        store = Store(str(mount))
        store.commit("m/1", {"a": b"a" * 50_000})
        for write in (
            lambda: store.commit("m/2", {"a": b"b" * 300_000}),
            lambda: store.write_bytes("big", b"b" * 300_000),
        ):
            with pytest.raises(StoreError, match=r"no space is left.*run again.*nothing published"):
                write()
        assert Committed(store, "m/1").damaged() == []
        assert store.names("m") == ["1"]
        assert {path.name for path in mount.rglob("*")} == {"m", "1", "a", COMMITTED}
        store.remove("m/1")
        store.commit("m/2", {"a": b"b" * 150_000})
        assert Committed(store, "m/2").damaged() == []
        subprocess.run(["mount", "-o", "remount,ro", str(mount)], check=True)
        with pytest.raises(StoreError, match="read-only"):
            store.write_bytes("c", b"")
        assert Committed(store, "m/2").damaged() == []
    finally:
        subprocess.run(["umount", str(mount)], check=False)


def test_a_limit_of_file_size_is_reported(local):
    local.commit("m/1", {"a": b"a"})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(StoreError, match="larger than"):
            local.commit("m/2", {"a": b"b" * 20_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert local.names("m") == ["1"]
    assert Committed(local, "m/1").damaged() == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_missing_permissions_are_reported(local):
    local.write_bytes("m/1", b"")
    Path(local.uri).chmod(0o500)
    with pytest.raises(StoreError, match="permission denied"):
        local.write_bytes("a", b"")


def test_a_file_in_place_of_a_folder_is_reported(local, tmp_path):
    local.write_bytes("a", b"")
    with pytest.raises(StoreError, match="a file stands where a folder is needed"):
        local.commit("a/b", {"c": b""})
    (tmp_path / "plain").write_bytes(b"")
    with pytest.raises(StoreError, match="a file stands where a folder is needed"):
        Store(str(tmp_path / "plain")).write_bytes("a", b"")


COMMITTER = """
    import os, sys
    from dbray.storage.store import Store
    store = Store(sys.argv[1])
    payload = os.urandom(200_000)
    number = int(sys.argv[2])
    print("ready", flush=True)
    while True:
        files = {f"part-{i}": payload for i in range(6)} | {"model.json": b"%d" % number}
        store.commit(f"models/rex/{number:06d}", files)
        number += 1
"""


def test_sigkill_while_committing_leaves_complete_folders_or_none(local):
    """At any moment, each visible folder is complete, and the next commit removes leftovers."""
    number, leftovers = 0, []
    models = Path(local.uri) / "models/rex"
    for _ in range(8):
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(COMMITTER), local.uri, str(number)],
            stdout=subprocess.PIPE,
        )
        assert child.stdout.readline() == b"ready\n"
        deadline = time.monotonic() + 60
        while len(local.names("models/rex")) <= number and time.monotonic() < deadline:
            pass
        time.sleep(int.from_bytes(os.urandom(1), "big") / 20_000)
        child.kill()
        child.wait()
        child.stdout.close()
        found = local.names("models/rex")
        assert found == [f"{index:06d}" for index in range(len(found))]
        assert len(found) > number
        for name in found[number:]:
            assert local.is_committed(f"models/rex/{name}")
            assert Committed(local, f"models/rex/{name}").damaged() == []
            assert len(Committed(local, f"models/rex/{name}").files) == 7
        leftovers.append(len([p for p in models.iterdir() if p.name.startswith(".")]))
        number = len(found)
    assert max(leftovers) <= 1, "staging folders of killed writers pile up"
    local.commit("models/rex/last", {"a": b""})
    assert not [path for path in models.iterdir() if path.name.startswith(".")]


def test_a_sweep_keeps_staging_folders_in_use(local, monkeypatch):
    started, go_on = threading.Event(), threading.Event()
    original = os.fsync

    def fsync(descriptor):
        if threading.current_thread().name == "slow":
            started.set()
            assert go_on.wait(60)
        original(descriptor)

    local.write_bytes("m/x", b"")
    monkeypatch.setattr(os, "fsync", fsync)
    slow = threading.Thread(target=local.commit, args=("m/1", {"a": b"slow"}), name="slow")
    slow.start()
    assert started.wait(60)
    local.commit("m/2", {"a": b"fast"})
    go_on.set()
    slow.join()
    assert Committed(local, "m/1").read("a") == b"slow"
