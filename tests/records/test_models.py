"""Publishing, finding, listing and removing models, and the effects of damage."""

from __future__ import annotations

import json
import logging
import os
import threading
from pathlib import Path

import pytest
from kit.records import record
from kit.storage import count_requests
from pyarrow import fs as pafs
from pydantic import ValidationError

from dbray.errors import DigestMismatch, ModelDamaged, ModelNotFound, RegistryError, StoreError
from dbray.records.annexes import Annex
from dbray.records.models import Registry
from dbray.spec.recipe import Recipe
from dbray.spec.sections import Prior
from dbray.storage.committed import Committed
from dbray.storage.store import Store, digest

WEIGHTS = {"unet.safetensors": os.urandom(50_000)}


@pytest.fixture(params=["local", "remote"])
def registry(request, tmp_path):
    if request.param == "remote":
        return Registry(Store("bucket", pafs._MockFileSystem()))
    return Registry(Store(str(tmp_path / "runs")))


@pytest.fixture
def local(tmp_path):
    return Registry(Store(str(tmp_path / "runs")))


def test_published_models_are_found_with_their_weights(registry, tmp_path):
    first = record()
    assert not registry.has("rex", first.revision)
    registry.publish(first, WEIGHTS)
    assert registry.has("rex", first.revision)
    found = registry.find("rex")
    assert found == first
    assert found.name == f"rex@{first.fingerprint[:12]}"
    paths = registry.weights(found, tmp_path / "cache")
    assert {name: path.read_bytes() for name, path in paths.items()} == WEIGHTS


def test_weights_may_be_files(registry, tmp_path):
    file = tmp_path / "w"
    file.write_bytes(WEIGHTS["unet.safetensors"])
    registry.publish(record(), {"unet.safetensors": file})
    [path] = registry.weights(registry.find("rex"), tmp_path / "cache").values()
    assert path.read_bytes() == WEIGHTS["unet.safetensors"]
    assert file.exists()


def test_the_latest_revision_is_found_and_prefixes_are_completed(registry):
    old = record(number=1, created_at="2026-01-01T00:00:00+00:00")
    new = record(number=2, created_at="2026-01-02T00:00:00+00:00")
    assert new.revision < old.revision, "or else the order of names would suffice"
    registry.publish(new, WEIGHTS)
    registry.publish(old, WEIGHTS)
    assert registry.find("rex") == new
    assert registry.revisions("rex") == [old, new]
    assert registry.find(old.name) == old
    assert registry.find(f"rex@{old.revision[:6]}") == old
    with pytest.raises(ModelNotFound, match=f"no revision 000000.*{new.revision}"):
        registry.find("rex@000000")


def test_an_ambiguous_prefix_lists_the_candidates(registry):
    twins = [record(fingerprint="abcdef" + digit * 58) for digit in "01"]
    for twin in twins:
        registry.publish(twin, WEIGHTS)
    with pytest.raises(RegistryError, match="abcdef000000, abcdef111111"):
        registry.find("rex@abcdef")
    assert registry.find("rex@abcdef1") == twins[1]


def test_the_error_for_a_missing_model_suggests_similar_names(registry):
    registry.publish(record("rex-the-dog"), WEIGHTS)
    registry.publish(record("teapot"), WEIGHTS)
    for missing in ("rex-the-dg", "rex-the-dg@abcdef"):
        with pytest.raises(ModelNotFound, match="did you mean rex-the-dog"):
            registry.find(missing)
    with pytest.raises(ModelNotFound, match="no model 'zzz'"):
        registry.remove("zzz")
    assert registry.revisions("zzz") == []


@pytest.mark.parametrize(
    "name",
    ["", "..", "../rex", "Rex", "rex/..", "rex@", "rex@../..", "rex@abcde", "rex@ABCDEF", "rex\n",
     "a" * 64, "rex@abcdef0123456", "-rex", "rex@abcdef@abcdef", "rex\0"],
)  # fmt: skip
def test_bad_names_never_reach_the_store(name, monkeypatch):
    registry = Registry(Store("bucket", pafs._MockFileSystem()))
    monkeypatch.setattr(Store, "_translating", lambda *args: pytest.fail("reached the store"))
    for call in (registry.find, registry.remove):
        with pytest.raises(RegistryError, match=r"is not a (model id|revision)"):
            call(name)
    model_id, _, revision = name.partition("@")
    with pytest.raises(RegistryError):
        registry.has(model_id, revision)
    if "@" not in name:
        with pytest.raises(RegistryError, match="not a model id"):
            registry.has(name, "0" * 12)


def test_records_reject_paths_as_ids_and_revisions():
    for changes in ({"model_id": "../x"}, {"revision": "../../etc"}, {"fingerprint": "z" * 64}):
        with pytest.raises(ValidationError):
            record(**changes)


def test_publishing_twice_keeps_the_first(registry):
    first = record()
    registry.publish(first, WEIGHTS)
    registry.publish(record(created_at="2027-01-01T00:00:00+00:00"), WEIGHTS)
    assert registry.find("rex") == first


def test_publishing_replaces_a_damaged_model(registry, tmp_path, caplog):
    model = record()
    folder = f"models/rex/{model.revision}"
    registry.publish(model, WEIGHTS)
    registry.store.write_bytes(f"{folder}/unet.safetensors", b"rotten")
    with pytest.raises(DigestMismatch):
        registry.weights(model, tmp_path / "cache")
    with caplog.at_level(logging.WARNING):
        registry.publish(model, WEIGHTS)
    assert "unet.safetensors" in caplog.text
    assert registry.weights(model, tmp_path / "cache")
    registry.store.write_bytes(f"{folder}/_COMMITTED", b"")
    registry.publish(model, WEIGHTS)
    assert registry.find("rex") == model


def test_a_record_must_match_its_weights(registry):
    for model, weights, reason in (
        (record(), {}, "lists"),
        (record(), WEIGHTS | {"text_encoder.safetensors": b""}, "lists"),
        (record(revision="0" * 12), WEIGHTS, "start of the fingerprint"),
        (record(files=("model.pt",)), {"model.pt": b""}, "safetensors"),
        (record(files=("../x.safetensors",)), {"../x.safetensors": b""}, "safetensors"),
    ):
        with pytest.raises(RegistryError, match=reason):
            registry.publish(model, weights)
    assert registry.store.names() == []


def test_only_the_first_tenant_may_publish_under_an_id(registry):
    registry.publish(record(tenant="acme"), WEIGHTS)
    registry.publish(record(number=1, tenant="acme"), WEIGHTS)
    for stranger in (None, "zeta"):
        with pytest.raises(RegistryError, match="another tenant"):
            registry.publish(record(number=2, tenant=stranger), WEIGHTS)
    assert len(registry.revisions("rex")) == 2


def test_list_returns_latest_revisions_and_skips_damaged_ones(registry, caplog):
    latest = []
    for name in ("a", "b", "c", "d"):
        registry.publish(record(name, 1, "2026-01-01T00:00:00+00:00"), WEIGHTS)
        latest.append(record(name, 2, "2026-01-02T00:00:00+00:00"))
        registry.publish(latest[-1], WEIGHTS)
    assert list(registry.list()) == latest
    old, new = registry.revisions("b")
    registry.store.write_bytes(f"models/b/{new.revision}/model.json", b"{}")
    registry.store.remove(f"models/c/{old.revision}/_COMMITTED")
    registry.store.write_bytes("models/.DS_Store", b"")
    registry.store.write_bytes("models/Not A Model/x", b"")
    registry.store.write_bytes("models/e/notes.txt", b"")
    with caplog.at_level(logging.WARNING):
        assert list(registry.list()) == [latest[0], old, latest[2], latest[3]]
    assert f"b@{new.revision}" in caplog.text
    assert next(iter(registry.list())) == latest[0]


def test_a_record_of_another_model_is_damage(registry):
    mine, other = record("rex"), record("fido")
    data = other.model_dump_json().encode()
    registry.store.commit(f"models/rex/{mine.revision}", {"model.json": data})
    with pytest.raises(ModelDamaged, match="contains the record of fido"):
        registry.find(mine.name)
    registry.store.commit("models/rex/0123456789ab", {"model.json": b'{"id": 3}'})
    with pytest.raises(ModelDamaged, match="unreadable"):
        registry.find("rex@0123456789ab")


def test_an_empty_registry_lists_nothing(registry):
    assert list(registry.list()) == []
    assert not registry.has("rex", "0" * 12)


def test_remove_deletes_every_file_of_a_model(local):
    first, second, other = record(number=1), record(number=2), record("fido")
    for model in (first, second, other):
        local.publish(model, WEIGHTS)
        Annex(local.store, model.name, "previews").publish({"0.png": b"png"})
    models = Path(local.store.uri) / "models"
    (models / "rex" / ".staging-of-a-dead-writer").mkdir()
    assert local.remove(f"rex@{first.revision[:8]}") == [first.name]
    assert local.revisions("rex") == [second]
    assert not (models / "rex" / first.revision).exists()
    assert local.remove("rex") == [second.name]
    assert [path.name for path in models.iterdir()] == ["fido"]
    local.publish(first, WEIGHTS)
    assert local.remove(first.name) == [first.name]
    assert not (models / "rex").exists(), "the empty folder of a model remains"
    assert local.find("fido") == other


def test_remove_works_on_object_stores(registry):
    models = [record(number=number) for number in range(3)]
    for model in models:
        registry.publish(model, WEIGHTS)
    assert sorted(registry.remove("rex")) == sorted(model.name for model in models)
    assert registry.store.names("models") == []
    with pytest.raises(ModelNotFound):
        registry.find("rex")


def test_remove_deletes_the_files_of_an_interrupted_publication(registry):
    registry.store.write_bytes("models/rex/0123456789ab/unet.safetensors", b"half")
    assert registry.remove("rex") == []
    assert not registry.store.exists("models/rex")


def test_a_damaged_marker_hides_only_its_own_revision(registry):
    old, new = record(number=1), record(number=2, created_at="2026-01-02T00:00:00+00:00")
    for model in (old, new):
        registry.publish(model, WEIGHTS)
    registry.store.write_bytes(f"models/rex/{new.revision}/_COMMITTED", b"rotten")
    assert registry.find("rex") == old
    with pytest.raises(ModelDamaged, match="is not a marker"):
        registry.find(new.name)
    registry.store.write_bytes(f"models/rex/{old.revision}/model.json", b"{}")
    with pytest.raises(ModelDamaged, match="is not what was published"):
        registry.find("rex")
    with pytest.raises(ModelNotFound):
        registry.find("rexx")


def test_is_there_is_false_only_without_a_tree_of_models(local):
    assert not local.is_there
    local.publish(record(), WEIGHTS)
    assert local.is_there
    local.remove("rex")
    assert local.is_there, "an empty registry is not a missing one"
    local.store.remove("models")
    assert not local.is_there


def test_without_suggestions_the_ids_are_not_listed(local, monkeypatch):
    local.publish(record(), WEIGHTS)
    requests = count_requests(monkeypatch)
    for name in ("rexx", "rexx@abcdef", "rexx@0123456789ab"):
        with pytest.raises(ModelNotFound, match="no model 'rexx'"):
            local.open(name, suggest=False)
    assert ("names", "models") not in requests


def test_the_error_for_a_missing_model_names_the_storage(local):
    with pytest.raises(ModelNotFound, match=f"published in {local.store.uri}$"):
        local.find("rex")


def test_finding_one_model_reads_no_other_model(local, monkeypatch):
    for name in ("rex", "fido", "teapot"):
        local.publish(record(name), WEIGHTS)
    seen = []
    original = Store.read_bytes
    monkeypatch.setattr(
        Store, "read_bytes", lambda self, path: (seen.append(path), original(self, path))[1]
    )
    local.find("rex")
    assert seen
    assert all(path.startswith("models/rex/") for path in seen)


def test_many_threads_publish_one_revision_once(local):
    models = [record(created_at=f"2026-01-0{day}T00:00:00+00:00") for day in range(1, 9)]
    threads = [threading.Thread(target=local.publish, args=(m, WEIGHTS)) for m in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert local.revisions("rex")[0] in models
    assert Committed(local.store, f"models/rex/{models[0].revision}").damaged() == []
    assert os.listdir(Path(local.store.uri) / "models/rex") == [models[0].revision]  # noqa: PTH208


def test_unwritable_storage_is_reported_and_models_stay_readable(local):
    model = record()
    local.publish(model, WEIGHTS)
    Path(local.store.uri, "models/fido").write_bytes(b"")
    with pytest.raises(StoreError, match="a file stands where a folder is needed"):
        local.publish(record("fido"), WEIGHTS)
    assert local.find("rex") == model


def newer(model):
    """Return the record of a newer dbray: with fields that this version does not know."""
    value = json.loads(model.model_dump_json())
    value["signature"] = {"by": "someone"}
    value["recipe"]["of_tomorrow"] = 100
    value["recipe"]["method"] = {"kind": "full", "layers": [1, 2]}
    value["prior"]["negative_prompt"] = "a cat"
    return json.dumps(value).encode()


def test_unknown_fields_of_a_newer_record_are_ignored(registry):
    model = record(recipe=Recipe(steps=7), prior=Prior(count=9))
    folder = f"models/rex/{model.revision}"
    registry.store.commit(folder, {"model.json": newer(model), "unet.safetensors": b"weights"})
    assert registry.find("rex") == model
    assert list(registry.list()) == [model]
    assert registry.has_record("rex", model.revision)
    assert "of_tomorrow" not in registry.find("rex").model_dump_json()


def test_the_revision_of_a_newer_record_is_checked(registry):
    model = record()
    other = model.model_copy(update={"fingerprint": "f" * 64})
    folder = f"models/rex/{model.revision}"
    registry.store.commit(folder, {"model.json": newer(other), "unet.safetensors": b"weights"})
    with pytest.raises(RegistryError, match="not the start of the fingerprint"):
        registry.find(model.name)


def test_unknown_fields_are_rejected_everywhere_else():
    for changes in ({"signature": 1}, {"recipe": {"of_tomorrow": 100}}, {"prior": {"kindness": 1}}):
        with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
            record(**changes)


def test_opening_a_revision_takes_two_requests(local, monkeypatch):
    model = record()
    local.publish(model, WEIGHTS)
    requests = count_requests(monkeypatch)
    revision = local.open(model.name)
    assert revision.record == model
    assert revision.digests == {"unet.safetensors": digest(WEIGHTS["unet.safetensors"])}
    assert revision.local_weights()["unet.safetensors"].read_bytes() == WEIGHTS["unet.safetensors"]
    assert len(requests) == 2
    requests.clear()
    assert local.has_record("rex", model.revision)
    assert len(requests) == 2
    requests.clear()
    assert local.find("rex") == model
    assert len(requests) == 3


def test_a_model_removed_while_opening_is_not_found(local, monkeypatch):
    model, real = record(), Store.read_bytes
    local.publish(model, WEIGHTS)

    def read(self, path):
        if path.endswith("model.json"):
            self.remove(f"models/rex/{model.revision}")
        return real(self, path)

    monkeypatch.setattr(Store, "read_bytes", read)
    with pytest.raises(ModelNotFound):
        local.open(model.name)
