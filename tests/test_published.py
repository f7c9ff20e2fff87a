"""Published models and class images are kept by every later version.

`data/published-0099309` is a storage that dbray made at commit 0099309 with two jobs on the tests'
tiny base: records, markers and class images, without weights. Only the digest of the base is given.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from dbray.planning.checks import check_file
from dbray.planning.plan import make_plan
from dbray.records.models import Registry
from dbray.records.prior_sets import PriorPlan, is_made
from dbray.spec.canon import digest_json
from dbray.spec.recipe import Recipe
from dbray.spec.sections import Prior
from dbray.storage.store import Store

PUBLISHED = Path(__file__).parent / "data" / "published-0099309"
BASE_DIGEST = "991e90d2b707d14cd76580cf4b945f4f98a85cafab03e72fc6456c25bd0be1d1"


@pytest.fixture
def storage(tmp_path, tiny_base):
    folder = shutil.copytree(PUBLISHED, tmp_path / "published")
    for file in folder.glob("*.yaml"):
        file.write_text(file.read_text().replace("stand-in", str(tiny_base)))
    return folder


@pytest.mark.parametrize(("job", "ids"), [
    ("plain", ["fido", "rex", "tom"]),
    ("chosen", ["rex-told", "tom-told"]),
])  # fmt: skip
def test_every_subject_of_an_old_storage_is_kept(storage, job, ids):
    ready = check_file(storage / f"{job}.yaml").ready()
    ready = replace(ready, base=replace(ready.base, digest=BASE_DIGEST))
    store = Store(ready.job.storage)
    plan = make_plan(ready, store)
    assert [one.subject.id for one in plan.kept] == ids
    assert plan.to_train == ()
    records = {record.id: record for record in Registry(store).list()}
    for planned in plan.kept:
        record = records[planned.subject.id]
        assert record.fingerprint == planned.fingerprint
        prior = PriorPlan(BASE_DIGEST, record.class_noun, record.prior)
        assert prior.digest == record.prior_digest == planned.prior_digest
        assert is_made(store, prior)


@pytest.mark.parametrize(("recipe", "digest"), [
    (Recipe(), "c190e35774a78ff374a762e743cbbcc2483a9bcf0fa35e06c92327341041a7e3"),
    (Recipe(steps=3, train_text_encoder=True, min_snr_gamma=1.0, resolution=64, seed=7),
     "8ab011026b9d1120e88c7e6a18478413f360c230668932d1981baa40ad4f15c8"),
])  # fmt: skip
def test_the_identity_of_a_recipe_is_that_of_the_first_version(recipe, digest):
    assert digest_json(recipe.identity()) == digest


@pytest.mark.parametrize(("prior", "digest"), [
    (Prior(), "31b2d1b820601f9ad6eab59e6732d9a00bed533a869596827f66a2689505b71a"),
    (Prior(count=64, guidance=5.0),
     "88fec9771b4a0356327b84916f4ad3123f2b94412a7b110f18d96a0c440c42bb"),
])  # fmt: skip
def test_the_name_of_a_prior_set_is_that_of_the_first_version(prior, digest):
    assert PriorPlan("0" * 64, "dog", prior).digest == digest
