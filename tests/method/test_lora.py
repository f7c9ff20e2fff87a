"""LoRA as a method: what is trained and published, and how it is merged into a resident model."""

from __future__ import annotations

import json

import pytest
import torch
from kit.training import Trained, check_published, contents_of, prediction_of, recipe_of
from safetensors.torch import load, save

from dbray import bases
from dbray.errors import BaseError, Diverged, TrainError
from dbray.method.lora import FILE, METHOD

LORA = {"kind": "lora", "rank": 4}
EVERYWHERE = LORA | {"targets": ["attention", "feed_forward", "convolutions"]}


@pytest.fixture
def backbone(tiny_base):
    return bases.load(bases.resolve(str(tiny_base)))


def trained(tiny_base, recipe):
    return Trained(bases.resolve(str(tiny_base)), recipe)


@pytest.mark.parametrize(("method", "train_text_encoder"), [
    (EVERYWHERE | {"alpha": 9}, True), (LORA | {"dora": True}, False),
])  # fmt: skip
def test_merged_files_predict_as_the_trained_network(tiny_base, method, train_text_encoder):
    recipe = recipe_of(method, train_text_encoder=train_text_encoder)
    found = trained(tiny_base, recipe)
    check_published(bases.resolve(str(tiny_base)), found, least=1e-3)


def test_switching_between_adapters_and_full_models_restores_the_base(tiny_base):
    from dbray.method.full import METHOD as FULL

    narrow = trained(tiny_base, recipe_of(LORA | {"targets": ["to_q"]}))
    wide = trained(tiny_base, recipe_of(EVERYWHERE))
    resident_of = bases.load(bases.resolve(str(tiny_base)))
    resident = resident_of.resident
    base = prediction_of(resident_of)
    unet = {name: value * 1.1 for name, value in resident_of.models["unet"].state_dict().items()}
    models = {
        "narrow": METHOD.read(contents_of(narrow.files), resident.layouts),
        "wide": METHOD.read(contents_of(wide.files), resident.layouts),
        "full": FULL.read(contents_of({"unet.safetensors": save(unet)}), resident.layouts),
        "base": None,
    }
    alone = {}
    for name, weights in models.items():
        resident.put(None)
        resident.put(weights)
        alone[name] = prediction_of(resident_of)
    assert torch.equal(alone["base"], base)
    for first in models:
        for second in models:
            resident.put(models[first])
            resident.put(models[second])
            assert torch.equal(prediction_of(resident_of), alone[second]), (first, second)


def test_only_factors_are_published_and_counted(tiny_base):
    recipe = recipe_of(EVERYWHERE, train_text_encoder=True)
    found = trained(tiny_base, recipe)
    tensors = load(found.files[FILE])
    number = sum(tensor.numel() for tensor in tensors.values())
    base = bases.resolve(str(tiny_base))
    assert METHOD.num_trained(base, recipe) == number
    assert METHOD.published_bytes(base, recipe) == 4 * number
    assert number == sum(p.numel() for p in found.network.parameters() if p.requires_grad)
    assert any(key.startswith("text_encoder.") for key in tensors)
    assert {key.rsplit(".", 2)[1] for key in tensors} == {"lora_A", "lora_B"}


def test_initial_factors_depend_only_on_the_seed(tiny_base):
    def initial(seed):
        backbone = bases.load(bases.resolve(str(tiny_base)))
        network = METHOD.network(backbone, recipe_of(LORA, seed=seed))
        return {name: p.clone() for name, p in network.named_parameters() if p.requires_grad}

    first, again, other = initial(0), initial(0), initial(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_targets_that_match_nothing_are_rejected(backbone):
    with pytest.raises(TrainError, match="'to_qq'"):
        METHOD.network(backbone, recipe_of(LORA | {"targets": ["attention", "to_qq"]}))


def test_a_wrong_number_of_target_layers_is_an_error(backbone, monkeypatch):
    family = type(backbone.base.family)
    monkeypatch.setattr(family, "num_targets", lambda *_: 1)
    with pytest.raises(TrainError, match="expected are 2"):
        METHOD.network(backbone, recipe_of(LORA))


def test_factors_that_are_not_finite_are_not_published(backbone):
    recipe = recipe_of(LORA)
    network = METHOD.network(backbone, recipe)
    weights = {name: p * float("inf") for name, p in network.named_parameters()}
    with pytest.raises(Diverged, match="learning_rate"):
        METHOD.publish(network, weights, recipe)


def metadata_of(data):
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length])["__metadata__"]


def test_files_that_do_not_fit_are_rejected(tiny_base):
    files = trained(tiny_base, recipe_of(LORA)).files
    layouts = bases.load(bases.resolve(str(tiny_base))).resident.layouts
    tensors, known = load(files[FILE]), metadata_of(files[FILE])
    key = next(iter(tensors))
    bad = {
        "lora.safetensors cannot": save(tensors | {"unet.x.weird": torch.zeros(1)}, known),
        "no layer unet.x": save(
            tensors
            | {
                "unet.x.lora_A.weight": torch.zeros(4, 1),
                "unet.x.lora_B.weight": torch.zeros(1, 4),
            },
            known,
        ),
        "cannot be read.*lora_": save({n: t for n, t in tensors.items() if n != key}, known),
        "do not fit": save(tensors | {key: torch.zeros(4, 3)}, known),
        "cannot be read": save(tensors),
    }
    for reason, data in bad.items():
        with pytest.raises(BaseError, match=reason):
            METHOD.read(contents_of({FILE: data}), layouts)
    with pytest.raises(BaseError, match="cannot be read"):
        METHOD.read(contents_of({FILE: files[FILE][:-3]}), layouts)
    with pytest.raises(BaseError, match="one file"):
        METHOD.read(contents_of({"unet.safetensors": files[FILE]}), layouts)
