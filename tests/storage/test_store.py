"""All kinds of storage behave the same: a disk, an S3 server, and others that pyarrow opens."""

from __future__ import annotations

import hashlib
import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
from pyarrow import fs as pafs

from dbray.errors import DigestMismatch, StoreError
from dbray.storage.committed import Committed
from dbray.storage.store import COMMITTED, FileRecord, Store, digest, digest_file, read_uri


@pytest.fixture(params=["local", "file uri", "s3", "mock", "subtree"])
def store(request, tmp_path):
    if request.param == "s3":
        return Store(request.getfixturevalue("s3_uri"))
    if request.param == "mock":
        return Store("bucket/runs", pafs._MockFileSystem())
    if request.param == "subtree":
        return Store("runs", pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()))
    root = tmp_path / "a folder"
    return Store(str(root) if request.param == "local" else root.as_uri())


MODEL = {"model.json": b'{"id": "rex"}', "unet.safetensors": os.urandom(3 << 20)}


def test_files_are_written_read_listed_and_removed(store):
    assert store.names() == []
    assert not store.exists("jobs/a.json")
    store.write_json("jobs/a.json", {"name": "Zoë", "n": [1, 2.5, None]})
    store.write_bytes("jobs/b.bin", b"one")
    store.write_bytes("jobs/b.bin", b"two")
    store.write_bytes("jobs/.hidden", b"")
    assert store.read_json("jobs/a.json") == {"name": "Zoë", "n": [1, 2.5, None]}
    assert store.read_bytes("jobs/b.bin") == b"two"
    assert store.names("jobs") == ["a.json", "b.bin"]
    assert store.names() == ["jobs"]
    assert store.names("nowhere") == []
    assert store.exists("jobs")
    store.remove("jobs/b.bin")
    store.remove("jobs/b.bin")
    assert store.names("jobs") == ["a.json"]
    store.remove("jobs")
    store.remove("jobs")
    assert store.names() == []


def test_errors_name_missing_and_broken_files(store):
    with pytest.raises(StoreError, match=r"jobs/a\.json does not exist"):
        store.read_bytes("jobs/a.json")
    store.write_bytes("jobs/a.json", b"{")
    with pytest.raises(StoreError, match=r"jobs/a\.json is not valid JSON"):
        store.read_json("jobs/a.json")
    with pytest.raises(StoreError, match=r"jobs(:| does not exist)"):
        store.read_bytes("jobs")


def test_commit_publishes_files_with_their_digests(store, tmp_path):
    big = tmp_path / "big.bin"
    big.write_bytes(os.urandom((2 << 20) + 7))
    files = MODEL | {"previews/0.png": b"png", "big.bin": big}
    assert not store.is_committed("models/rex/1")
    with pytest.raises(StoreError, match="does not exist"):
        Committed(store, "models/rex/1").damaged()
    store.commit("models/rex/1", files)
    assert store.is_committed("models/rex/1")
    assert store.names("models/rex") == ["1"]
    records = Committed(store, "models/rex/1").files
    assert set(records) == set(files)
    assert records["model.json"] == FileRecord(digest(MODEL["model.json"]), 13)
    assert records["big.bin"] == FileRecord(digest_file(big), big.stat().st_size)
    assert Committed(store, "models/rex/1").read("previews/0.png") == b"png"
    assert store.read_json(f"models/rex/1/{COMMITTED}")["committed_at"].endswith("+00:00")
    assert Committed(store, "models/rex/1").damaged() == []


def test_commit_again_changes_nothing(store):
    store.commit("m/1", {"a": b"first"})
    store.commit("m/1", {"a": b"second", "b": b""})
    assert Committed(store, "m/1").read("a") == b"first"
    assert set(Committed(store, "m/1").files) == {"a"}


def test_commit_replaces_an_uncommitted_leftover(store):
    store.write_bytes("m/1/a", b"half of a")
    assert not store.is_committed("m/1")
    store.commit("m/1", {"a": b"whole"})
    assert Committed(store, "m/1").read("a") == b"whole"


def test_damage_is_found_on_reading(store):
    store.commit("m/1", {"a": b"aaaa", "b": b"bbbb", "c": b"cccc", "d": b"dddd"})
    store.write_bytes("m/1/b", b"bbbB")
    store.write_bytes("m/1/c", b"ccc")
    store.remove("m/1/d")
    assert Committed(store, "m/1").damaged() == ["b", "c", "d"]
    assert Committed(store, "m/1").read("a") == b"aaaa"
    for name, reason in (("b", "not what was published"), ("c", "3 bytes"), ("d", "missing")):
        with pytest.raises(DigestMismatch, match=f"m/1/{name} .*{reason}"):
            Committed(store, "m/1").read(name)
    with pytest.raises(StoreError, match="without 'e'"):
        Committed(store, "m/1").read("e")
    store.write_bytes(f"m/1/{COMMITTED}", b"[]")
    with pytest.raises(DigestMismatch, match="is not a marker"):
        Committed(store, "m/1").damaged()


def test_seal_commits_existing_files(store):
    store.write_bytes("p/1/part-0", b"zero")
    with pytest.raises(StoreError, match="part-1 is missing"):
        store.seal("p/1", ["part-0", "part-1"])
    assert not store.is_committed("p/1")
    store.write_bytes("p/1/part-1", b"one")
    store.seal("p/1", ["part-0", "part-1"])
    assert Committed(store, "p/1").damaged() == []
    assert Committed(store, "p/1").read("part-1") == b"one"


def test_fetch_gives_verified_local_files(store, tmp_path):
    store.commit("m/1", MODEL)
    destination = tmp_path / "cache"
    paths = Committed(store, "m/1").fetch(["unet.safetensors"], destination)
    assert list(paths) == ["unet.safetensors"]
    path = paths["unet.safetensors"]
    assert path.read_bytes() == MODEL["unet.safetensors"]
    assert store.is_local == (store.local_path("m/1/unet.safetensors") == path)
    if not store.is_local:
        before = path.stat().st_mtime_ns
        assert Committed(store, "m/1").fetch(["unet.safetensors"], destination) == paths
        assert path.stat().st_mtime_ns == before
        path.write_bytes(b"rotten")
        Committed(store, "m/1").fetch(["unet.safetensors"], destination)
        assert path.read_bytes() == MODEL["unet.safetensors"]
    store.write_bytes("m/1/unet.safetensors", MODEL["unet.safetensors"][:-1])
    with pytest.raises(DigestMismatch, match=r"unet\.safetensors"):
        Committed(store, "m/1").fetch(["unet.safetensors"], tmp_path / "other")
    assert not list((tmp_path / "other").rglob("*")), "a damaged download was kept"


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a/", "a\\..\\b", "a\nb", "a\0b", ".."],
)
def test_paths_out_of_the_store_are_rejected(store, path):
    for call in (
        lambda: store.read_bytes(path),
        lambda: store.write_bytes(path, b""),
        lambda: store.remove(path),
        lambda: store.exists(path),
        lambda: store.commit(path, {"a": b""}),
        lambda: store.commit("m/1", {path: b""}),
    ):
        with pytest.raises(StoreError, match="not a path in a store"):
            call()


def test_the_name_of_the_marker_is_reserved(store):
    with pytest.raises(StoreError, match="marker's name"):
        store.commit("m/1", {COMMITTED: b""})


def test_stores_can_be_pickled(store, request):
    if request.node.callspec.params["store"] in ("mock", "subtree"):
        pytest.skip("exists in this process only")
    store.write_bytes("a", b"a")
    twin = pickle.loads(pickle.dumps(store))
    assert twin.read_bytes("a") == b"a"
    assert Store(store.uri).read_bytes("a") == b"a"


def test_many_writers_of_one_folder_leave_one_consistent_result(store):
    def publish(number):
        store.commit("m/1", {"model.json": b"%d" % number, "weights": b"w" * 100_000})

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(publish, range(6)))
    assert Committed(store, "m/1").damaged() == []
    assert store.names("m") == ["1"]


def test_an_object_store_writes_the_marker_last(s3_uri, monkeypatch):
    store = Store(s3_uri)
    written = []
    original = store._disk.write
    monkeypatch.setattr(
        store._disk, "write", lambda path, data: (written.append(path), original(path, data))[1]
    )
    store.commit("m/1", MODEL)
    assert written == ["m/1/model.json", "m/1/unet.safetensors", f"m/1/{COMMITTED}"]


def test_a_commit_survives_a_rivals_half_written_marker(s3_uri, monkeypatch):
    store = Store(s3_uri)
    original = store._disk.write
    torn = iter([True])

    def write(path, source):
        record = original(path, source)
        if path.endswith(COMMITTED) and next(torn, False):
            original(path, b"")  # a filesystem's state between truncation and write
        return record

    monkeypatch.setattr(store._disk, "write", write)
    store.commit("m/1", MODEL)
    assert Committed(store, "m/1").damaged() == []


def test_an_object_store_commit_repairs_files_of_a_rival(s3_uri, monkeypatch):
    store, rival = Store(s3_uri), Store(s3_uri)
    original = store._disk.write
    interferences = iter([True])

    def write(path, source):
        if path.endswith(COMMITTED) and next(interferences, False):
            rival.write_bytes("m/1/model.json", b"the rival's")
        return original(path, source)

    monkeypatch.setattr(store._disk, "write", write)
    store.commit("m/1", MODEL)
    assert Committed(store, "m/1").damaged() == []
    assert Committed(store, "m/1").read("model.json") == MODEL["model.json"]


def test_large_objects_are_read_in_few_requests(s3_uri, s3_server, monkeypatch):
    store, data = Store(s3_uri), b"0123456789abcdef" * 2**20
    store.commit("a", {"weights": data})
    handler, asked = s3_server[0].RequestHandlerClass, []
    get = handler.do_GET
    monkeypatch.setattr(handler, "do_GET", lambda self: (asked.append(self.path), get(self)))
    assert store.read_bytes("a/weights") == data
    assert read_uri(s3_uri.replace("/runs?", "/runs/a/weights?")) == data
    assert Committed(store, "a").damaged() == []
    assert 3 <= sum("weights" in path for path in asked) <= 3 * 4


def test_messages_do_not_contain_secrets(s3_uri):
    store = Store(s3_uri)
    with pytest.raises(StoreError) as caught:
        store.read_bytes("nothing")
    assert "verysecret" not in f"{caught.value} {store!r} {store.location('a')}"
    assert "bucket/team/runs/nothing does not exist" in str(caught.value)


def test_an_invalid_address_is_rejected():
    with pytest.raises(StoreError, match=r"s3://\[x\]/runs' is not an address"):
        Store("s3://[x]/runs").read_bytes("a")
    with pytest.raises(StoreError, match="is not an address"):
        read_uri("s3://[x]/a.png")


def test_pyarrow_errors_about_an_address_contain_no_secrets():
    for uri in ("s3://KEY:SEC/RET@bucket/a.png", "ftp://u:SEC@h/a?x=RET"):
        with pytest.raises(StoreError) as caught:
            read_uri(uri)
        assert "SEC" not in str(caught.value)
        assert "RET" not in str(caught.value)


def test_access_errors_name_the_store(s3_uri):
    store = Store(s3_uri.replace("team/runs", "forbidden"))
    with pytest.raises(StoreError, match=r"cannot write s3://.*bucket/forbidden/a: .*access"):
        store.write_bytes("a", b"")
    with pytest.raises(StoreError, match="cannot read ftp://"):
        read_uri("ftp://example.org/a.png")


def test_read_uri_reads_local_paths_and_uris(s3_uri, tmp_path):
    Store(s3_uri).write_bytes("photos/Rex #1 100%.png", b"0123456789")
    address, options = s3_uri.split("?")
    assert read_uri(f"{address}/photos/Rex #1 100%25.png?{options}") == b"0123456789"
    assert read_uri(f"{address}/photos/Rex%20%231%20100%25.png?{options}", 3) == b"0123"
    file = tmp_path / "Rex #1 100%.png"
    file.write_bytes(b"0123456789")
    assert read_uri(str(file)) == b"0123456789"
    assert read_uri(str(file), limit_bytes=4) == b"01234"
    assert read_uri(file.as_uri()) == b"0123456789"


def test_digests_are_sha256(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(b"abc" * 1_000_000)
    assert digest(b"abc") == hashlib.sha256(b"abc").hexdigest()
    assert digest_file(file) == digest(b"abc" * 1_000_000)
    with pytest.raises(StoreError, match="does not exist"):
        digest_file(tmp_path / "none")


def test_json_files_are_plain_utf8(tmp_path):
    Store(str(tmp_path)).write_json("a.json", {"ü": 1})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n "ü": 1\n}\n'
