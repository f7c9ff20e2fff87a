"""Models side by side in one batch: each row as with its own model alone, and nothing stays."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import torch
from kit.low_rank import ATTENTION, factors, lora_file, token_file
from torch import Tensor

from dbray import bases
from dbray.bases import Backbone
from dbray.bases.resident import Weights
from dbray.method import lora, tokens
from dbray.method.full import Flat
from dbray.method.lora import Merged
from dbray.method.mixing import UNTOUCHED, Member, member_of, mixable_layers, mixed

CONVOLUTIONS = ("conv1", "conv_in", "time_emb_proj")


@pytest.fixture(scope="module")
def backbone(tiny_base: Any) -> Backbone:
    return bases.load(bases.resolve(str(tiny_base)))


@pytest.fixture(scope="module")
def models(backbone: Backbone) -> list[Weights]:
    """Attention of rank 4, other layers of rank 2, attention of rank 8 and the text encoder."""
    folder = backbone.base.folder
    text = factors(folder, 3, 2, ("q_proj",), "text_encoder")
    adapters = (
        factors(folder, 0),
        factors(folder, 1, 2, CONVOLUTIONS),
        factors(folder, 2, 8) | text,
    )
    return [_read(backbone, {lora.FILE: lora_file(adapter)}) for adapter in adapters]


def _read(backbone: Backbone, files: dict[str, bytes]) -> Weights:
    contents = {
        name: torch.frombuffer(bytearray(data), dtype=torch.uint8) for name, data in files.items()
    }
    return lora.METHOD.read(contents, backbone.resident.layouts)


def member(backbone: Backbone, weights: Weights | None) -> Member:
    found = member_of(weights, "unet", mixable_layers(backbone.models["unet"]))
    assert found is not None
    return found


def predict(backbone: Backbone, rows: int) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    latents = torch.randn(rows, *backbone.latent_shape(), generator=draw)
    condition = backbone.condition(["a photo of a dog"]).repeat(rows)
    return backbone.denoise(latents, torch.full((rows,), 500), condition)


def merged(backbone: Backbone, weights: Weights | None, rows: int) -> Tensor:
    """Predict with a model's factors of the denoiser in the resident weights."""
    own = member(backbone, weights).layers
    layers = {("unet", f"{path}.weight"): factors for path, factors in own.items()}
    backbone.resident.put(Merged(layers))
    try:
        return predict(backbone, rows)
    finally:
        backbone.resident.put(None)


def test_each_row_is_that_of_its_own_model_alone(backbone: Backbone, models: list[Weights]) -> None:
    rows = [None, *models, models[0], None]
    with mixed(backbone.models["unet"], [member(backbone, one) for one in rows]):
        together = predict(backbone, len(rows))
    alone = [merged(backbone, one, len(rows)) for one in rows]
    for row, expected in enumerate(alone):
        torch.testing.assert_close(together[row], expected[row], rtol=0, atol=1e-5)
    assert all((alone[i] - alone[0]).abs().max() > 1e-2 for i in (1, 2, 3))


@pytest.mark.parametrize("content", [math.nan, 3.0])
def test_a_row_does_not_depend_on_the_other_models_bit_for_bit(
    backbone: Backbone, models: list[Weights], content: float
) -> None:
    own, other = (member(backbone, one) for one in models[:2])
    odd = {path: replace(f, up=torch.full_like(f.up, content)) for path, f in own.layers.items()}
    unet = backbone.models["unet"]
    with mixed(unet, [own, own, own]):
        expected = predict(backbone, 3)[1]
    for company in (Member(odd), other, UNTOUCHED):
        with mixed(unet, [company, own, company]):
            assert torch.equal(predict(backbone, 3)[1], expected)


def test_a_batch_allocates_only_its_own_factors(
    backbone: Backbone, models: list[Weights], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, zeros, allocated = [member(backbone, one) for one in models], torch.zeros, []

    def counted(*sizes: int, **options: Any) -> Tensor:
        allocated.append(zeros(*sizes, **options))
        return allocated[-1]

    monkeypatch.setattr(torch, "zeros", counted)
    with mixed(backbone.models["unet"], rows, repeats=2):
        assert sum(tensor.numel() for tensor in allocated) == 0


def test_after_the_block_the_denoiser_is_the_base_again(
    backbone: Backbone, models: list[Weights]
) -> None:
    unet, before = backbone.models["unet"], predict(backbone, 2)
    modules = dict(unet.named_modules())
    with suppress(ZeroDivisionError), mixed(unet, [member(backbone, one) for one in models[:2]]):
        assert not torch.equal(predict(backbone, 2), before)
        raise ZeroDivisionError
    assert dict(unet.named_modules()) == modules
    assert torch.equal(predict(backbone, 2), before)


def test_a_layer_that_no_model_changes_stays_as_it_is(
    backbone: Backbone, models: list[Weights]
) -> None:
    unet = backbone.models["unet"]
    with mixed(unet, [member(backbone, models[0]), UNTOUCHED]):
        changed = {
            path for path, one in unet.named_modules() if type(one).__name__.startswith("LowRank")
        }
    assert changed
    assert all(path.endswith(ATTENTION) for path in changed)


def test_what_is_written_into_text_encoders_is_kept_apart(
    backbone: Backbone, models: list[Weights]
) -> None:
    assert member(backbone, models[0]).text is None
    text = member(backbone, models[2]).text
    assert text is not None
    assert set(text.changes) == {"text_encoder"}
    files = {tokens.FILE: token_file(backbone.base.folder, "zb", 1)}
    pivotal = _read(backbone, files | {lora.FILE: lora_file(factors(backbone.base.folder, 0))})
    found = member(backbone, pivotal)
    assert found.layers.keys() == member(backbone, models[0]).layers.keys()
    assert found.text is not None
    assert set(found.text.changes) == {"text_encoder"}


def test_whole_weights_and_dora_cannot_be_mixed(backbone: Backbone, models: list[Weights]) -> None:
    mixable = mixable_layers(backbone.models["unet"])
    assert member_of(Flat({}), "unet", mixable) is None
    layers = member(backbone, models[0]).layers
    with_magnitudes = {
        ("unet", f"{path}.weight"): replace(f, magnitude=torch.ones(len(f.up)))
        for path, f in layers.items()
    }
    assert member_of(Merged(with_magnitudes), "unet", mixable) is None
    assert member_of(models[0], "unet", mixable - {next(iter(layers))}) is None
