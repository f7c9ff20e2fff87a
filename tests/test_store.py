"""Storage of every kind behaves alike: a disk, an S3 server, and others that pyarrow opens."""

from __future__ import annotations

import hashlib
import os
import pickle
import threading
import urllib.parse
import uuid
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from pyarrow import fs as pafs

from dbray.errors import DigestMismatch, StoreError
from dbray.store import COMMITTED, FileRecord, Store, digest, digest_file, read_uri


class S3Handler(BaseHTTPRequestHandler):
    """The part of S3's HTTP interface that pyarrow uses, over a dict: no folders, no renames."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    objects: dict[str, bytes]
    uploads: dict[str, dict[int, bytes]]

    def answer(self, status=200, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", headers.pop("length", None) or str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def missing(self):
        self.answer(404, b"<Error><Code>NoSuchKey</Code><Message>none</Message></Error>")

    def split(self):
        parts = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
        bucket, _, key = urllib.parse.unquote(parts.path).lstrip("/").partition("/")
        return bucket, key, query

    def body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b"".join(self.chunks())
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "aws-chunked" not in self.headers.get("Content-Encoding", ""):
            return data
        plain = b""
        while (size := int(data.partition(b"\r\n")[0].partition(b";")[0], 16)) > 0:
            start = data.index(b"\r\n") + 2
            plain, data = plain + data[start : start + size], data[start + size + 2 :]
        return plain

    def chunks(self):
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def do_HEAD(self):
        _, key, _ = self.split()
        if not key or key in self.objects:
            data = self.objects.get(key, b"")
            self.answer(length=str(len(data)), ETag='"0"',
                        Last_Modified="Mon, 01 Jan 2024 00:00:00 GMT")  # fmt: skip
        else:
            self.answer(404)

    def do_GET(self):
        _, key, query = self.split()
        if "list-type" in query:
            self.list(query)
        elif key not in self.objects:
            self.missing()
        else:
            data, status = self.objects[key], 200
            if "Range" in self.headers:
                first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
                data, status = data[int(first) : int(last or len(data)) + 1], 206
            self.answer(status, data, ETag='"0"', Last_Modified="Mon, 01 Jan 2024 00:00:00 GMT")

    def list(self, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        entries = set()
        for key, data in self.objects.items():
            rest = key.removeprefix(prefix)
            if not key.startswith(prefix):
                continue
            if delimiter and delimiter in rest:
                folder = prefix + rest.partition(delimiter)[0] + delimiter
                entries.add(f"<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>")
            else:
                facts = f"<Key>{key}</Key><Size>{len(data)}</Size>"
                date = "<LastModified>2024-01-01T00:00:00Z</LastModified>"
                entries.add(f"<Contents>{facts}{date}</Contents>")
        head = f"<KeyCount>{len(entries)}</KeyCount><IsTruncated>false</IsTruncated>"
        body = f"<ListBucketResult>{head}{''.join(sorted(entries))}</ListBucketResult>"
        self.answer(200, body.encode(), Content_Type="application/xml")

    def do_PUT(self):
        _, key, query = self.split()
        data = self.body()
        if key.startswith("forbidden"):
            self.answer(403, b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>")
            return
        if "uploadId" in query:
            self.uploads[query["uploadId"]][int(query["partNumber"])] = data
        elif key:
            self.objects[key] = data
        self.answer(ETag='"0"')

    def do_POST(self):
        _, key, query = self.split()
        data = self.body()
        if key.startswith("forbidden"):
            self.answer(403, b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>")
            return
        if "uploads" in query:
            upload = uuid.uuid4().hex
            self.uploads[upload] = {}
            kind = "InitiateMultipartUploadResult"
            body = f"<{kind}><UploadId>{upload}</UploadId></{kind}>"
        elif "uploadId" in query:
            parts = self.uploads.pop(query["uploadId"])
            self.objects[key] = b"".join(parts[number] for number in sorted(parts))
            body = "<CompleteMultipartUploadResult><ETag>0</ETag></CompleteMultipartUploadResult>"
        else:
            for part in data.decode().split("<Key>")[1:]:
                self.objects.pop(part.partition("</Key>")[0], None)
            body = "<DeleteResult></DeleteResult>"
        self.answer(200, body.encode(), Content_Type="application/xml")

    def do_DELETE(self):
        self.objects.pop(self.split()[1], None)
        self.answer(204)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="session")
def s3_server():
    handler = type("Handler", (S3Handler,), {"objects": {}, "uploads": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server, handler.objects
    server.shutdown()


@pytest.fixture
def s3_uri(s3_server):
    server, objects = s3_server
    objects.clear()
    options = f"endpoint_override=127.0.0.1:{server.server_port}&scheme=http&region=eu-west-1"
    return f"s3://someone:verysecret@bucket/team/runs?{options}"


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


def test_missing_and_broken_files_are_named(store):
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
        store.committed("models/rex/1")
    store.commit("models/rex/1", files)
    assert store.is_committed("models/rex/1")
    assert store.names("models/rex") == ["1"]
    records = store.committed("models/rex/1")
    assert set(records) == set(files)
    assert records["model.json"] == FileRecord(digest(MODEL["model.json"]), 13)
    assert records["big.bin"] == FileRecord(digest_file(big), big.stat().st_size)
    assert store.read_committed("models/rex/1", "previews/0.png") == b"png"
    assert store.read_json(f"models/rex/1/{COMMITTED}")["committed_at"].endswith("+00:00")
    assert store.verify("models/rex/1") == []


def test_commit_again_changes_nothing(store):
    store.commit("m/1", {"a": b"first"})
    store.commit("m/1", {"a": b"second", "b": b""})
    assert store.read_committed("m/1", "a") == b"first"
    assert set(store.committed("m/1")) == {"a"}


def test_commit_replaces_an_uncommitted_leftover(store):
    store.write_bytes("m/1/a", b"half of a")
    assert not store.is_committed("m/1")
    store.commit("m/1", {"a": b"whole"})
    assert store.read_committed("m/1", "a") == b"whole"


def test_damage_is_found_on_reading(store):
    store.commit("m/1", {"a": b"aaaa", "b": b"bbbb", "c": b"cccc", "d": b"dddd"})
    store.write_bytes("m/1/b", b"bbbB")
    store.write_bytes("m/1/c", b"ccc")
    store.remove("m/1/d")
    assert store.verify("m/1") == ["b", "c", "d"]
    assert store.read_committed("m/1", "a") == b"aaaa"
    for name, reason in (("b", "not what was published"), ("c", "3 bytes"), ("d", "missing")):
        with pytest.raises(DigestMismatch, match=f"m/1/{name} .*{reason}"):
            store.read_committed("m/1", name)
    with pytest.raises(StoreError, match="without 'e'"):
        store.read_committed("m/1", "e")
    store.write_bytes(f"m/1/{COMMITTED}", b"[]")
    with pytest.raises(StoreError, match="is no marker"):
        store.committed("m/1")


def test_seal_commits_what_lies_there(store):
    store.write_bytes("p/1/part-0", b"zero")
    with pytest.raises(StoreError, match="part-1 is missing"):
        store.seal("p/1", ["part-0", "part-1"])
    assert not store.is_committed("p/1")
    store.write_bytes("p/1/part-1", b"one")
    store.seal("p/1", ["part-0", "part-1"])
    assert store.verify("p/1") == []
    assert store.read_committed("p/1", "part-1") == b"one"


def test_fetch_gives_verified_local_files(store, tmp_path):
    store.commit("m/1", MODEL)
    destination = tmp_path / "cache"
    paths = store.fetch("m/1", ["unet.safetensors"], destination)
    assert list(paths) == ["unet.safetensors"]
    path = paths["unet.safetensors"]
    assert path.read_bytes() == MODEL["unet.safetensors"]
    assert store.is_local == (store.local_path("m/1/unet.safetensors") == path)
    if not store.is_local:
        before = path.stat().st_mtime_ns
        assert store.fetch("m/1", ["unet.safetensors"], destination) == paths
        assert path.stat().st_mtime_ns == before
        path.write_bytes(b"rotten")
        store.fetch("m/1", ["unet.safetensors"], destination)
        assert path.read_bytes() == MODEL["unet.safetensors"]
    store.write_bytes("m/1/unet.safetensors", MODEL["unet.safetensors"][:-1])
    with pytest.raises(DigestMismatch, match=r"unet\.safetensors"):
        store.fetch("m/1", ["unet.safetensors"], tmp_path / "other")
    assert not list((tmp_path / "other").rglob("*")), "a damaged download was kept"


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a/", "a\\..\\b", "a\nb", "a\0b", ".."],
)
def test_paths_that_could_lead_out_are_refused(store, path):
    for call in (
        lambda: store.read_bytes(path),
        lambda: store.write_bytes(path, b""),
        lambda: store.remove(path),
        lambda: store.exists(path),
        lambda: store.commit(path, {"a": b""}),
        lambda: store.commit("m/1", {path: b""}),
    ):
        with pytest.raises(StoreError, match="no path in a store"):
            call()


def test_the_markers_name_is_taken(store):
    with pytest.raises(StoreError, match="marker's name"):
        store.commit("m/1", {COMMITTED: b""})


def test_stores_travel_between_processes(store, request):
    if request.node.callspec.params["store"] in ("mock", "subtree"):
        pytest.skip("lives in this process")
    store.write_bytes("a", b"a")
    twin = pickle.loads(pickle.dumps(store))
    assert twin.read_bytes("a") == b"a"
    assert Store(store.uri).read_bytes("a") == b"a"


def test_many_writers_of_one_folder_leave_one_consistent_result(store):
    def publish(number):
        store.commit("m/1", {"model.json": b"%d" % number, "weights": b"w" * 100_000})

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(publish, range(6)))
    assert store.verify("m/1") == []
    assert store.names("m") == ["1"]


def test_object_store_writes_the_marker_last(s3_uri, monkeypatch):
    store = Store(s3_uri)
    written = []
    original = store._disk.write
    monkeypatch.setattr(
        store._disk, "write", lambda path, data: (written.append(path), original(path, data))[1]
    )
    store.commit("m/1", MODEL)
    assert written == ["m/1/model.json", "m/1/unet.safetensors", f"m/1/{COMMITTED}"]


def test_a_commit_outlives_a_marker_that_a_rival_has_half_written(s3_uri, monkeypatch):
    store = Store(s3_uri)
    original = store._disk.write
    torn = iter([True])

    def write(path, source):
        record = original(path, source)
        if path.endswith(COMMITTED) and next(torn, False):
            original(path, b"")  # as a filesystem shows it between its truncation and its bytes
        return record

    monkeypatch.setattr(store._disk, "write", write)
    store.commit("m/1", MODEL)
    assert store.verify("m/1") == []


def test_object_store_commit_mends_what_another_writer_mixed_in(s3_uri, monkeypatch):
    store, rival = Store(s3_uri), Store(s3_uri)
    original = store._disk.write
    interferences = iter([True])

    def write(path, source):
        if path.endswith(COMMITTED) and next(interferences, False):
            rival.write_bytes("m/1/model.json", b"the rival's")
        return original(path, source)

    monkeypatch.setattr(store._disk, "write", write)
    store.commit("m/1", MODEL)
    assert store.verify("m/1") == []
    assert store.read_committed("m/1", "model.json") == MODEL["model.json"]


def test_secrets_stay_out_of_messages(s3_uri):
    store = Store(s3_uri)
    with pytest.raises(StoreError) as caught:
        store.read_bytes("nothing")
    assert "verysecret" not in f"{caught.value} {store!r} {store.location('a')}"
    assert "bucket/team/runs/nothing does not exist" in str(caught.value)


def test_a_refusing_store_is_told_as_such(s3_uri):
    store = Store(s3_uri.replace("team/runs", "forbidden"))
    with pytest.raises(StoreError, match=r"cannot write s3://.*bucket/forbidden/a: .*access"):
        store.write_bytes("a", b"")
    with pytest.raises(StoreError, match="cannot read ftp://"):
        read_uri("ftp://example.org/a.png")


def test_read_uri_reads_anything(s3_uri, tmp_path):
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


def test_json_is_readable_by_others(tmp_path):
    Store(str(tmp_path)).write_json("a.json", {"ü": 1})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n "ü": 1\n}\n'
