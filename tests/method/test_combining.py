"""Several models as one: the weighted sum of their changes, with all their tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.low_rank import factors, lora_file, token_file

from dbray import bases
from dbray.bases import Backbone
from dbray.bases.resident import Weights
from dbray.errors import BaseError
from dbray.method import lora
from dbray.method.combining import combined
from dbray.method.full import Flat
from dbray.method.lora import Merged


@pytest.fixture(scope="module")
def backbone(tiny_base: Any) -> Backbone:
    return bases.load(bases.resolve(str(tiny_base)))


def read(backbone: Backbone, **files: bytes) -> Weights:
    contents = {
        f"{name}.safetensors": torch.frombuffer(bytearray(data), dtype=torch.uint8)
        for name, data in files.items()
    }
    return lora.METHOD.read(contents, backbone.resident.layouts)


def change(backbone: Backbone, weights: Weights) -> dict[str, torch.Tensor]:
    """Return how a model changes the base's UNet and text encoder."""
    parts = {"unet", "text_encoder"}
    network = backbone.network(sorted(parts))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    backbone.resident.put(weights)
    found = {name: value - before[name] for name, value in network.state_dict().items()}
    backbone.resident.put(None)
    return found


def test_the_changes_of_models_are_added_up_by_weight(backbone: Backbone) -> None:
    folder = backbone.base.folder
    adapters = (factors(folder, 0, 4), factors(folder, 1, 2, ("to_q", "conv1")))
    first, second = (read(backbone, lora=lora_file(adapter)) for adapter in adapters)
    together = change(backbone, combined([(first, 1.0), (second, -0.5)]))
    one, other = change(backbone, first), change(backbone, second)
    for name, value in together.items():
        torch.testing.assert_close(value, one[name] - 0.5 * other[name], rtol=0, atol=1e-5)
    assert sum(bool(value.any()) for value in together.values()) > len(adapters[0])


def test_one_model_with_weight_one_stays_what_it_is(backbone: Backbone) -> None:
    model = read(backbone, lora=lora_file(factors(backbone.base.folder, 0)))
    assert combined([(model, 1.0)]) is model
    half = change(backbone, combined([(model, 0.5)]))
    for name, value in change(backbone, model).items():
        torch.testing.assert_close(half[name], 0.5 * value, rtol=0, atol=1e-5)


def test_the_tokens_of_all_models_are_learnt_and_not_scaled(backbone: Backbone) -> None:
    folder = backbone.base.folder
    first, second = (read(backbone, tokens=token_file(folder, name, seed))
                     for seed, name in enumerate(("zb", "xc")))  # fmt: skip
    together = change(backbone, combined([(first, 0.5), (second, 1.0)]))
    one, other = change(backbone, first), change(backbone, second)
    [table] = (name for name, value in together.items() if value.any())
    torch.testing.assert_close(together[table], one[table] + other[table])


@pytest.mark.parametrize("method", ["whole", "dora", "same token"])
def test_what_cannot_be_added_up_is_rejected(backbone: Backbone, method: str) -> None:
    folder: Path = backbone.base.folder
    model = read(backbone, lora=lora_file(factors(folder, 0)))
    assert isinstance(model, Merged)
    learnt = [read(backbone, tokens=token_file(folder, "zb", seed)) for seed in (0, 1)]
    dora = Merged({key: replace(f, magnitude=torch.ones(len(f.up)))
                   for key, f in model.layers.items()})  # fmt: skip
    pairs: dict[str, tuple[list[Weights], str]] = {
        "whole": ([model, Flat({})], "only low-rank models"),
        "dora": ([model, dora], "models with DoRA"),
        "same token": (learnt, "learnt the same token"),
    }
    chosen, message = pairs[method]
    with pytest.raises(BaseError, match=message):
        combined([(one, 1.0) for one in chosen])
