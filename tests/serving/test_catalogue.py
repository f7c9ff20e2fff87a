"""The catalogue: fresh reads of a registry, storage failures, and cached values."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from kit.records import publish
from kit.storage import count_requests

from dbray.errors import ModelDamaged, ModelNotFound, StoreError
from dbray.records import previews
from dbray.records.models import Registry
from dbray.serving.http.access.tenants import EVERYONE
from dbray.serving.http.catalogue import Catalogue, Recent
from dbray.storage.store import Store

pytestmark = pytest.mark.timeout(60)


def folder_of(storage, record):
    return Path(storage, "models", record.id, record.revision)


@pytest.fixture
def reads(monkeypatch):
    """The paths that are read, and the number of failures to inject by the end of a path."""
    seen, failing = [], {}
    real = Store.read_bytes

    def read(self, path):
        seen.append(path)
        for end, times in failing.items():
            if path.endswith(end) and times:
                failing[end] -= 1
                raise StoreError("connection reset")
        return real(self, path)

    monkeypatch.setattr(Store, "read_bytes", read)
    return seen, failing


def test_a_record_is_read_once_and_a_new_revision_found_at_once(tmp_path, reads):
    seen, _ = reads
    catalogue = Catalogue(str(tmp_path), 0.0)
    old = publish(tmp_path, number=1)
    for name in ("rex", "rex", old.name, old.name[:12], "rex"):
        assert catalogue.find(name) == old
    assert sum(path.endswith("model.json") for path in seen) == 1
    new = publish(tmp_path, number=2)
    seen.clear()
    assert catalogue.find("rex") == new
    assert catalogue.models() == [new]
    assert [path for path in seen if path.endswith("model.json")] == [
        f"models/{new.id}/{new.revision}/model.json"
    ]
    Registry(Store(str(tmp_path))).remove("rex")
    for name in ("rex", new.name):
        with pytest.raises(ModelNotFound):
            catalogue.find(name)


def test_a_revision_published_again_belongs_to_its_new_owner(tmp_path):
    catalogue = Catalogue(str(tmp_path), 0.0)
    assert catalogue.find(publish(tmp_path, tenant="acme").name).tenant == "acme"
    Registry(Store(str(tmp_path))).remove("rex")
    assert catalogue.find(publish(tmp_path, tenant="zeta").name).tenant == "zeta"


def test_an_older_revision_never_replaces_an_unreadable_one(tmp_path, reads):
    _, failing = reads
    publish(tmp_path, number=1)
    new = publish(tmp_path, number=2)
    catalogue = Catalogue(str(tmp_path), 0.0)
    for file in ("model.json", "_COMMITTED"):
        failing[f"{new.revision}/{file}"] = 1
        with pytest.raises(StoreError, match="connection reset"):
            catalogue.find("rex")
        assert catalogue.find("rex") == new


@pytest.mark.parametrize("file", ["model.json", "_COMMITTED"])
@pytest.mark.parametrize("fresh_seconds", [0.0, 60.0])
def test_a_damaged_record_is_not_a_missing_one(tmp_path, file, fresh_seconds):
    old = publish(tmp_path, number=1, tenant="acme")
    new = publish(tmp_path, number=2, tenant="acme")
    (folder_of(tmp_path, new) / file).write_bytes(b"{}")
    catalogue = Catalogue(str(tmp_path), fresh_seconds)
    assert catalogue.find("rex") == old
    assert catalogue.models() == [old]
    for _ in range(2):
        with pytest.raises(ModelDamaged):
            catalogue.find(new.name)
        assert catalogue.owner(new.name) == "acme"  # by the other revision


def test_the_owner_of_a_damaged_record_may_be_unknown(tmp_path):
    record = publish(tmp_path, tenant="acme")
    (folder_of(tmp_path, record) / "model.json").write_bytes(b"{}")
    catalogue = Catalogue(str(tmp_path), 0.0)
    with pytest.raises(ModelDamaged):
        catalogue.find("rex")
    assert catalogue.owner("rex") == EVERYONE


@pytest.mark.parametrize("vanish", [lambda folder: folder.rename(folder.with_name("away")),
                                    lambda folder: (folder / "models").rename(folder / ".away")],
                         ids=["the folder is gone", "the mount is empty"])  # fmt: skip
def test_a_vanished_registry_is_not_an_empty_one(tmp_path, vanish):
    storage = tmp_path / "runs"
    publish(storage)
    catalogue = Catalogue(str(storage), 0.0)
    vanish(storage)
    for look in (lambda: catalogue.find("rex"), catalogue.models, catalogue.check,
                 lambda: catalogue.remove("rex")):  # fmt: skip
        with pytest.raises(StoreError, match="missing or not mounted"):
            look()


def test_new_and_emptied_registries_have_no_models(tmp_path):
    catalogue = Catalogue(str(tmp_path), 0.0)
    assert catalogue.models() == []
    publish(tmp_path)
    catalogue.check()
    catalogue.remove("rex")
    catalogue.check()
    with pytest.raises(ModelNotFound):
        catalogue.find("rex")


def test_a_revision_removed_during_a_read_is_skipped(tmp_path, monkeypatch):
    old, new = publish(tmp_path, number=1), publish(tmp_path, number=2)
    registry, real = Registry(Store(str(tmp_path))), Store.read_bytes

    def read(self, path):
        if new.revision in path and registry.has("rex", new.revision):
            registry.remove(new.name)
        return real(self, path)

    monkeypatch.setattr(Store, "read_bytes", read)
    assert Catalogue(str(tmp_path), 0.0).find("rex") == old


def test_unknown_ids_do_not_list_the_registry(tmp_path, monkeypatch):
    publish(tmp_path)
    listed, real = [], Store.names
    monkeypatch.setattr(
        Store, "names", lambda self, path="": (listed.append(path), real(self, path))[1]
    )
    catalogue = Catalogue(str(tmp_path), 0.0)
    for name in ("rec", "rec@abcdef", "rec@abcdef012345", "rex@abcdef"):
        with pytest.raises(ModelNotFound):
            catalogue.find(name)
    assert set(listed) == {"models/rec", "models/rex"}


def test_pictures_are_removed_with_their_model(tmp_path):
    record = publish(tmp_path)
    catalogue = Catalogue(str(tmp_path), 0.0)
    assert (catalogue.previews(record), catalogue.preview_prompts(record)) == ([], [])
    previews.annex(Store(str(tmp_path)), record.name).publish(
        {"0.png": b"png", "photo-0.webp": b"webp", "previews.json": b'{"prompts": ["p"]}'}
    )
    assert catalogue.previews(record) == ["0.png", "photo-0.webp"]
    assert catalogue.preview_prompts(record) == ["p"]
    assert catalogue.preview(record, "0.png") == b"png"
    for name in ("previews.json", "../model.json", "9.png"):
        assert catalogue.preview(record, name) is None
    (folder_of(tmp_path, record) / "previews" / "0.png").write_bytes(b"rotten")
    assert catalogue.preview(record, "0.png") is None
    assert catalogue.remove("rex") == [record.name]
    assert catalogue.preview(record, "photo-0.webp") is None


def test_concurrent_callers_wait_for_one_value():
    made, entered, opened = [], threading.Event(), threading.Event()
    recent = Recent[list[int]](2, 60.0)

    def make():
        made.append(1)
        entered.set()
        assert opened.wait(30)
        return made

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(recent.get, "a", make)
        assert entered.wait(30)
        others = [pool.submit(recent.get, "a", make) for _ in range(3)]
        assert recent.get("b", lambda: [2]) == [2]  # another key does not wait
        opened.set()
        assert all(future.result(30) is made for future in (first, *others))
    assert made == [1]


def test_a_slow_value_is_fresh_from_its_completion():
    now, entered, opened = [0.0], threading.Event(), threading.Event()
    recent = Recent[int](2, 5.0, lambda: now[0])

    def make():
        entered.set()
        assert opened.wait(30)
        return 1

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(recent.get, "a", make)
        assert entered.wait(30)
        now[0] += 60
        second = pool.submit(recent.get, "a", lambda: 2)
        opened.set()
        assert (first.result(30), second.result(30)) == (1, 1)
    now[0] += 4
    assert recent.get("a", lambda: 3) == 1
    now[0] += 1
    assert recent.get("a", lambda: 3) == 3


def test_failures_are_not_kept_and_old_values_are_made_again():
    now = [0.0]
    recent = Recent[int](2, 5.0, lambda: now[0])

    def fail():
        raise StoreError("connection reset")

    with pytest.raises(StoreError):
        recent.get("a", fail)
    assert recent.get("a", lambda: 1) == 1
    now[0] += 4
    assert recent.get("a", lambda: 2) == 1
    now[0] += 1
    assert recent.get("a", lambda: 2) == 2
    recent.clear()
    assert recent.get("a", lambda: 3) == 3


def test_a_cold_request_takes_five_storage_requests_before_the_weights(tmp_path, monkeypatch):
    record = publish(tmp_path)
    requests = count_requests(monkeypatch)
    assert Catalogue(str(tmp_path), 0.0).find("rex") == record  # in the ingress
    revision = Registry(Store(str(tmp_path))).open(record.name)  # in the replica
    assert revision.digests.keys() == revision.local_weights().keys()
    assert len(requests) == 5
