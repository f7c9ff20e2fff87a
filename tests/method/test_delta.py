"""`publish: delta`: the change of a full fine-tuning as factors, and their error."""

from __future__ import annotations

import pytest
import torch
from kit.training import Trained, contents_of, prediction_of, recipe_of
from safetensors.torch import load

from dbray import bases
from dbray.errors import BaseError, Diverged
from dbray.method import delta, lora
from dbray.method.full import METHOD
from dbray.method.methods import method_of

WHOLE = recipe_of("full", train_text_encoder=True)
"""Everything is trained in float32, so that a delta has the same trained weights."""


def delta_of(rank, **changes):
    publish = {"kind": "delta", "rank": rank}
    method = {"kind": "full", "publish": publish}
    return recipe_of(method, **({"train_text_encoder": True} | changes))


@pytest.fixture(scope="module")
def base(tiny_base):
    return bases.resolve(str(tiny_base))


@pytest.fixture(scope="module")
def whole(base):
    """The trained weights, by their names in the network."""
    files = Trained(base, WHOLE).files
    return {f"{file.removesuffix('.safetensors')}.{name}": tensor
            for file, data in files.items() for name, tensor in load(data).items()}  # fmt: skip


@pytest.fixture(scope="module")
def trained(base):
    """Files of the same subject as deltas, by rank."""
    return {rank: Trained(base, delta_of(rank)).files for rank in (2, 6)}


def put_into(backbone, files):
    weights = METHOD.read(contents_of(files), backbone.resident.layouts)
    backbone.resident.put(weights)
    return weights


def state_of(backbone, parts=("unet", "text_encoder")):
    return {f"{part}.{name}": tensor.clone() for part in parts
            for name, tensor in backbone.models[part].named_parameters()}  # fmt: skip


def error_between(found, wanted, base):
    """The norm of the difference, over that of the change."""
    left_out = sum((found[name] - wanted[name]).double().square().sum() for name in wanted)
    changed = sum((base[name] - wanted[name]).double().square().sum() for name in wanted)
    return float((left_out / changed).sqrt())


@pytest.mark.parametrize("rank", [2, 6])
def test_the_error_in_the_record_is_that_of_the_served_weights(base, whole, trained, rank):
    backbone = bases.load(base)
    before = state_of(backbone)
    put_into(backbone, trained[rank])
    error = float(METHOD.about(trained[rank])[delta.ERROR])
    assert 0.01 < error < 1
    assert error_between(state_of(backbone), whole, before) == pytest.approx(error, rel=2e-3)
    backbone.resident.put(None)
    after = state_of(backbone)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_larger_rank_has_a_smaller_error_and_small_tensors_are_exact(base, whole, trained):
    errors = [float(METHOD.about(trained[rank])[delta.ERROR]) for rank in (2, 6)]
    assert errors[1] < errors[0]
    backbone = bases.load(base)
    put_into(backbone, trained[2])
    found = state_of(backbone)
    small = [name for name, tensor in whole.items() if tensor.ndim == 1]
    assert len(small) > 10
    for name in small:
        torch.testing.assert_close(found[name], whole[name], rtol=0, atol=1e-7)


def test_the_error_is_close_to_the_best_of_this_rank(base, whole, trained):
    backbone = bases.load(base)
    before = state_of(backbone)
    put_into(backbone, trained[6])
    found = state_of(backbone)
    checked = 0
    for name, wanted in whole.items():
        change = (wanted - before[name]).flatten(1) if wanted.ndim > 1 else None
        if change is None or torch.allclose(found[name], wanted, atol=1e-6):
            continue
        best = torch.linalg.svdvals(change.double())[6:].norm()
        assert (found[name] - wanted).double().norm() <= 1.02 * best + 1e-6
        checked += 1
    assert checked > 5


def test_equal_weights_give_equal_files(base, trained):
    torch.manual_seed(123)
    state = torch.random.get_rng_state()
    assert Trained(base, delta_of(2)).files == trained[2]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_size_of_a_model_equals_the_planned_size(base, trained):
    for rank, files in trained.items():
        payload = sum(tensor.nbytes for data in files.values() for tensor in load(data).values())
        assert METHOD.published_bytes(base, delta_of(rank)) == payload
    assert METHOD.published_bytes(base, delta_of(2)) < METHOD.published_bytes(base, WHOLE) / 3


def test_learnt_tokens_replace_rows_of_the_changed_table(base):
    recipe = delta_of(4, identifier_rate=0.1)
    trained = Trained(base, recipe)
    assert {delta.FILE, lora.FILE, "tokens.safetensors"} == trained.files.keys()
    plain = Trained(base, recipe_of("full", train_text_encoder=True, identifier_rate=0.1))
    tables = []
    for method, files in ((recipe.method, trained.files), ("full", plain.files)):
        backbone = bases.load(base)
        settings = recipe_of(method).method
        layouts = backbone.resident.layouts
        backbone.resident.put(method_of(settings).read(contents_of(files), layouts))
        tables.append(backbone.models["text_encoder"].get_input_embeddings().weight)
    torch.testing.assert_close(tables[0], tables[1], rtol=0, atol=1e-6)


def test_the_error_includes_that_of_half_precision(base):
    files = Trained(base, delta_of(6, publish_precision="fp16")).files
    types = {tensor.dtype for tensor in load(files[lora.FILE]).values()}
    assert types == {torch.float16}
    assert {tensor.dtype for tensor in load(files[delta.FILE]).values()} == {torch.float32}
    backbone = bases.load(base)
    untouched = prediction_of(backbone)
    put_into(backbone, files)
    assert not torch.equal(prediction_of(backbone), untouched)


@pytest.mark.parametrize("name", ["unet.conv_in.bias", "unet.conv_in.weight"])
def test_weights_that_are_not_finite_are_not_published(base, name):
    backbone = bases.load(base)
    network = METHOD.network(backbone, delta_of(2))
    weights = {name: p.detach().clone() for name, p in network.named_parameters()
               if p.requires_grad}  # fmt: skip
    weights[name][0] = float("nan")
    with pytest.raises(Diverged, match="not finite"):
        METHOD.publish(network, weights, delta_of(2))


def test_a_file_for_another_base_is_rejected(base, trained):
    layouts = bases.load(base).resident.layouts
    contents = contents_of(trained[2])
    with pytest.raises(BaseError, match="does not fit the base"):
        METHOD.read(contents, {"unet": layouts["unet"]})
    contents[delta.FILE] = contents[delta.FILE][:20]
    with pytest.raises(BaseError, match="cannot be read"):
        METHOD.read(contents, layouts)


def test_the_plain_method_keeps_its_canonical_form():
    assert recipe_of("full").identity()["method"] == "full"
    found = recipe_of({"kind": "full", "publish": "delta"}).identity()["method"]
    assert found == {"kind": "full", "publish": {"kind": "delta", "rank": 32}}
    assert recipe_of({"kind": "full", "publish": None}).identity()["method"] == "full"
