"""Previews: images of published weights and of the base, and broken models."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from kit import records
from PIL import Image
from safetensors.torch import load_file, save

from dbray import bases
from dbray.bases.generate import Sampling, generate
from dbray.errors import LaneLost
from dbray.method.full import METHOD
from dbray.records import previews as layout
from dbray.records.models import ModelRecord, Registry
from dbray.sampling.joining import AnnexRequest
from dbray.sampling.pool import Result, SamplingPool
from dbray.sampling.previews import PreviewActor, make_previews, seeds_of
from dbray.spec.recipe import Recipe
from dbray.spec.sections import Previews
from dbray.storage.store import Store
from dbray.subjects.images import decode_png, encode_png
from dbray.training.losses import seed_of

PREVIEWS = Previews(
    prompts=("a photo of {subject} on the beach", "a {class}"),
    sampler="ddim",
    steps=2,
    guidance=2.0,
    seed=5,
)


@pytest.fixture(scope="module")
def base(tiny_base):
    return bases.resolve(str(tiny_base))


def record_of(base: bases.Base, name: str, noun: str, precision: str = "fp32") -> ModelRecord:
    recipe = Recipe(resolution=32, precision=precision)
    return records.record(
        name,
        class_noun=noun,
        identifier="zb",
        base=base.name,
        base_digest=base.digest,
        recipe=recipe,
    )


def weights_of(base: bases.Base, seed: int) -> dict[str, torch.Tensor]:
    """Return the base's weights with noise, as if trained."""
    [file] = (base.folder / "unet").glob("*.safetensors")
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (value + 0.05 * torch.randn(value.shape, generator=generator)).half()
        for name, value in load_file(file).items()
    }


def previews_of(registry: Registry, record: ModelRecord) -> dict[str, bytes] | None:
    return layout.annex(registry.store, record.name).read()


@pytest.fixture(scope="module")
def photograph(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("photos") / "tall.png"
    pixels = np.random.default_rng(0).integers(0, 255, (400, 300, 3), dtype=np.uint8)
    file.write_bytes(encode_png(pixels))
    return file


@pytest.fixture(scope="module")
def sampled(base, ray_session, photograph, tmp_path_factory):
    """Previews of six models, three of them broken in different ways."""
    store = Store(str(tmp_path_factory.mktemp("storage")))
    registry = Registry(store)
    nouns = {"rex": "dog", "tom": "cat", "rot": "dog", "ugly": "dog", "lost": "dog", "ace": "dog"}
    records = {name: record_of(base, name, noun) for name, noun in nouns.items()}
    records["ace"] = record_of(base, "ace", "dog", precision="bf16")
    for seed, (name, record) in enumerate(records.items()):
        weights = weights_of(base, seed)
        if name == "ugly":  # as published, but for another base
            weights.popitem()
        registry.publish(record, {"unet.safetensors": save(weights)})
    rotten = store.local_path(f"models/rot/{records['rot'].revision}/unet.safetensors")
    rotten.write_bytes(rotten.read_bytes()[:-100])
    photographs = {name: [str(photograph)] for name in records}
    photographs["lost"] = ["/nowhere/photo.jpg"]
    progress = []
    requests = [AnnexRequest(record, photographs[name]) for name, record in records.items()]
    failures = make_previews(
        store, base, requests, PREVIEWS, SamplingPool(num_actors=1),
        lambda *at: progress.append(at),
    )  # fmt: skip
    return registry, records, failures, progress


def bytes_of(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.frombuffer(bytearray(save(tensors)), dtype=torch.uint8)


def expected_of(base, weights, noun: str, identifier: str | None, precision: str) -> np.ndarray:
    subject = f"{identifier} {noun}" if identifier else noun
    backbone = bases.load(base, bases.Compute(precision=precision, resolution=32))
    files = {f"{part}.safetensors": bytes_of(tensors) for part, tensors in weights.items()}
    backbone.resident.put(METHOD.read(files, backbone.resident.layouts))
    prompts = [f"a photo of {subject} on the beach", f"a {noun}"]
    return generate(backbone, prompts, [seed_of(5, 0), seed_of(5, 1)], Sampling("ddim", 2, 2.0))


@pytest.mark.ray
def test_previews_equal_direct_sampling(base, sampled, photograph) -> None:
    registry, records, _, _ = sampled
    for name, seed in {"rex": 0, "tom": 1, "ace": 5}.items():
        record = records[name]
        files = previews_of(registry, record)
        assert sorted(files) == ["0.png", "1.png", "base-0.png", "base-1.png", "photo-0.webp",
                                 "previews.json"]  # fmt: skip
        noun, precision = record.class_noun, record.recipe.precision
        weights = {"unet": weights_of(base, seed)}
        ours = expected_of(base, weights, noun, "zb", precision)
        of_base = expected_of(base, {}, noun, None, precision)
        for index in range(2):
            assert (decode_png(files[f"{index}.png"]) == ours[index]).all()
            assert (decode_png(files[f"base-{index}.png"]) == of_base[index]).all()
        assert not (ours == of_base).all()
        thumbnail = Image.open(io.BytesIO(files["photo-0.webp"]))
        assert (thumbnail.format, thumbnail.size) == ("WEBP", (144, 192))
        description = json.loads(files["previews.json"])
        assert description == {
            "prompts": [f"a photo of zb {noun} on the beach", f"a {noun}"],
            "base_prompts": [f"a photo of {noun} on the beach", f"a {noun}"],
            "sampler": "ddim",
            "steps": 2,
            "guidance": 2.0,
            "seed": 5,
            "seeds": seeds_of(PREVIEWS),
        }


@pytest.mark.ray
def test_broken_models_are_reported_and_do_not_stop_others(sampled) -> None:
    registry, records, failures, progress = sampled
    reasons = dict(failures)
    assert sorted(reasons) == ["lost", "rot", "ugly"]
    assert "is not what was published" in reasons["rot"]
    assert "does not fit the base" in reasons["ugly"]
    assert "/nowhere/photo.jpg does not exist" in reasons["lost"]
    assert not any(previews_of(registry, records[name]) for name in reasons)
    assert progress == [(done, 6) for done in range(7)]


class CountingActor(PreviewActor):
    """Records every task of the base."""

    def make(self, task):
        if task["model"] is None:
            with (Path(self._registry.store.uri) / "of-base").open("a") as file:
                file.write(task["class_noun"] + "\n")
        return super().make(task)


@pytest.mark.ray
def test_the_base_is_sampled_once_per_class_noun(base, ray_session, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("dbray.sampling.previews.PreviewActor", CountingActor)
    store = Store(str(tmp_path))
    registry = Registry(store)
    records = [record_of(base, name, "cat" if name == "c" else "dog") for name in "abc"]
    for record in records:
        registry.publish(record, {"unet.safetensors": save(weights_of(base, 0))})
    requests = [AnnexRequest(record, []) for record in records]
    assert make_previews(store, base, requests, PREVIEWS, SamplingPool(num_actors=1)) == []
    assert sorted((tmp_path / "of-base").read_text().split()) == ["cat", "dog"]
    of_base = [previews_of(registry, record)["base-0.png"] for record in records]
    assert of_base[0] == of_base[1] != of_base[2]


def test_results_arrive_in_any_order_and_the_pool_may_die(base, tmp_path, monkeypatch) -> None:
    store = Store(str(tmp_path))
    registry = Registry(store)
    records = [record_of(base, name, "cat" if name == "c" else "dog") for name in "abc"]
    for record in records:
        registry.publish(record, {"unet.safetensors": b"weights"})

    def backwards(actor, actor_args, tasks, pool):
        assert [task["model"] is None for task in tasks] == [True, True, False, False, False]
        for index in (4, 3, 2, 1):  # the result of the cat's base is missing
            yield Result(index, {f"{index}.png": b"pixels"})
        raise LaneLost("out of memory")

    monkeypatch.setattr("dbray.sampling.joining.sample", backwards)
    requests = [AnnexRequest(record, []) for record in records]
    assert make_previews(store, base, requests, PREVIEWS) == [("c", "out of memory")]
    for index, record in enumerate(records[:2]):
        names = previews_of(registry, record).keys()
        assert names == {f"{index + 3}.png", "1.png", "previews.json"}
    assert previews_of(registry, records[2]) is None
