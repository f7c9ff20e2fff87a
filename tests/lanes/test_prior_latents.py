"""The latents of class images: encoded once, kept with their set, and made again if damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dbray import bases
from dbray.errors import StoreError
from dbray.lanes.beat import Beat
from dbray.lanes.prior_latents import PriorLatents
from dbray.records.prior_sets import DESCRIPTION, PriorPlan, encode_part, part_name
from dbray.spec.sections import Prior
from dbray.storage.store import Store
from dbray.subjects.images import encode_png

BEAT = Beat(None, "lane", leads=False)


class Encoding:
    """A backbone that counts how often it encodes."""

    def __init__(self, backbone, resolution=None):
        self.resolution = resolution or backbone.resolution
        self.device, self.num_encoded, self._backbone = backbone.device, 0, backbone

    def encode(self, pixels):
        self.num_encoded += len(pixels)
        return self._backbone.encode(pixels)


@pytest.fixture(scope="module")
def backbone(tiny_base):
    return bases.load(bases.resolve(str(tiny_base)))


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "storage"))


def publish(store, seed=0):
    """Publish a set of 20 random images; returns its digest."""
    plan = PriorPlan("0" * 64, "dog", Prior(count=20))
    rng = np.random.default_rng(seed)
    for part in range(plan.num_parts):
        indices = plan.indices(part)
        pngs = [encode_png(rng.integers(0, 255, (32, 32, 3), np.uint8)) for _ in indices]
        data = encode_part(indices, [0] * len(indices), pngs)
        store.write_bytes(f"{plan.folder}/{part_name(part)}", data)
    store.write_json(f"{plan.folder}/{DESCRIPTION}", {})
    store.seal(plan.folder, plan.files)
    return plan.digest


def latents_of(store, digest, encoding):
    """Latents as a lane gets them that has none in memory."""
    found = PriorLatents(store, encoding).of(digest, BEAT)
    return found.mean_VCHW, found.std_VCHW


def kept(store, digest):
    """The files of kept latents."""
    return sorted(store.local_path(f"priors/{digest}").glob("latents/*/latents.safetensors"))


def test_another_lane_reads_the_same_latents_and_does_not_encode(store, backbone):
    digest, first, second = publish(store), Encoding(backbone), Encoding(backbone)
    made = latents_of(store, digest, first)
    assert [tuple(one.shape) for one in made] == [(20, 4, 8, 8)] * 2
    read = latents_of(store, digest, second)
    assert (first.num_encoded, second.num_encoded) == (20, 0)
    assert all(torch.equal(*pair) for pair in zip(made, read, strict=True))


def test_a_lane_reads_a_set_once(store, backbone):
    latents = PriorLatents(store, Encoding(backbone))
    digest = publish(store)
    assert latents.of(digest, BEAT) is latents.of(digest, BEAT)


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(b"{")])
def test_damaged_latents_are_made_again(store, backbone, damage):
    digest = publish(store)
    made = latents_of(store, digest, Encoding(backbone))
    [file] = kept(store, digest)
    good = file.read_bytes()
    damage(file)
    again = Encoding(backbone)
    assert all(map(torch.equal, latents_of(store, digest, again), made))
    assert again.num_encoded == 20
    assert file.read_bytes() == good


def test_other_images_or_another_encoding_have_other_latents(store, backbone):
    digest = publish(store)
    made = latents_of(store, digest, Encoding(backbone))
    larger = Encoding(backbone, resolution=48)
    assert latents_of(store, digest, larger)[0].shape == (20, 4, 12, 12)
    torch.set_num_threads(2)
    try:
        latents_of(store, digest, Encoding(backbone))
    finally:
        torch.set_num_threads(1)
    assert len(kept(store, digest)) == 3
    store.remove(f"priors/{digest}/_COMMITTED")  # as where a damaged part is sampled again
    publish(store, seed=1)
    assert not torch.equal(latents_of(store, digest, Encoding(backbone))[0], made[0])


def test_latents_that_cannot_be_kept_are_used_nevertheless(store, backbone, monkeypatch):
    digest = publish(store)

    def is_full(*_):
        raise StoreError("no space is left")

    monkeypatch.setattr(Store, "commit", is_full)
    assert len(latents_of(store, digest, Encoding(backbone))[0]) == 20
    assert kept(store, digest) == []
