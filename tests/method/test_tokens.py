"""Training of the identifier's embeddings, alone and with every other method."""

from __future__ import annotations

import pytest
import torch
from kit.training import Trained, check_published, contents_of, recipe_of
from safetensors.torch import load, save

from dbray import bases
from dbray.errors import BaseError, TrainError
from dbray.method import tokens
from dbray.method.methods import method_of

METHODS = {
    "textual_inversion": recipe_of("textual_inversion"),
    "pivotal": recipe_of({"kind": "pivotal", "rank": 2}),
    "full": recipe_of("full", identifier_rate=0.02),
    "full with text": recipe_of("full", identifier_rate=0.02, train_text_encoder=True),
    "lora with text": recipe_of(
        {"kind": "lora", "rank": 2}, identifier_rate=0.02, train_text_encoder=True
    ),
}


@pytest.fixture(scope="module")
def base(tiny_base):
    return bases.resolve(str(tiny_base))


@pytest.mark.parametrize("name", METHODS)
def test_published_files_predict_as_the_trained_network(base, name):
    found = Trained(base, METHODS[name], checkpoint=2)
    assert tokens.FILE in found.files
    check_published(base, found)
    assert found.resumed == found.files, "a restart at a checkpoint does not continue bit for bit"


def test_textual_inversion_changes_only_the_identifiers_embeddings(base):
    found = Trained(base, METHODS["textual_inversion"])
    assert found.files.keys() == {tokens.FILE}
    changed = {name for name, value in found.network.named_parameters()
               if not torch.equal(value, found.begun[name])}  # fmt: skip
    assert changed == {"text_encoder.embeddings.token_embedding.rows"}
    dog = found.backbone.condition(["a dog"]).tensors["text"]
    assert torch.equal(dog, bases.load(base).condition(["a dog"]).tensors["text"])


def test_rows_keep_the_median_norm_of_the_table(base):
    found = Trained(base, METHODS["full"])
    [rows] = load(found.files[tokens.FILE]).values()
    table = bases.load(base).models["text_encoder"].get_input_embeddings().weight
    assert len(rows) == 1
    torch.testing.assert_close(rows.norm(dim=1)[0], table.norm(dim=1).median())


def test_only_the_rate_of_the_embeddings_decays(base):
    engine = Trained(base, METHODS["full"]).engine
    [own, rows] = engine._optimizer.param_groups
    assert (own["lr"], own["weight_decay"]) == (1e-2, 1e-2)
    assert rows["lr"] == pytest.approx(0.02 / 4)  # before the last of 4 steps
    assert rows["weight_decay"] == 0


def test_all_rates_follow_the_recipes_warm_up_and_cosine(base):
    changes = {"warmup_steps": 2, "rate_schedule": "cosine"}
    engine = Trained(base, METHODS["full"].model_copy(update=changes)).engine
    [own, rows] = engine._optimizer.param_groups
    assert own["lr"] == pytest.approx(1e-2 / 2)  # before the last of 4 steps
    assert rows["lr"] == pytest.approx(0.02 / 2)


def test_an_identifier_of_too_many_tokens_is_rejected(base):
    backbone, recipe = bases.load(base), METHODS["textual_inversion"]
    method = method_of(recipe.method)
    network = method.network(backbone, recipe)
    with pytest.raises(TrainError, match="choose a shorter one"):
        method.begin(network, "abcdefghijk")


def test_subjects_are_begun_with_the_tokenizers_that_the_backbone_loaded(base, monkeypatch):
    recipe = METHODS["full"]
    method, backbone = method_of(recipe.method), bases.load(base)
    monkeypatch.setattr("transformers.CLIPTokenizer.from_pretrained", None)
    network = method.network(backbone, recipe)
    rows = [method.begin(network, identifier) for identifier in ("zb", "xc", "zb")]
    [name] = rows[0]
    assert torch.equal(rows[0][name], rows[2][name])
    assert not torch.equal(rows[0][name], rows[1][name])


def test_files_that_do_not_fit_are_rejected(base):
    layouts = bases.load(base).resident.layouts
    good = torch.zeros(1, 16)
    bad = {
        "cannot be read": save({"text_encoder": good}),
        "no embeddings 'unet'": save({"unet": good}, {"token_ids": '{"unet": [1]}'}),
        "do not fit": save(
            {"text_encoder": torch.zeros(1, 3)}, {"token_ids": '{"text_encoder": [1]}'}
        ),
        "of text_encoder do not fit": save(
            {"text_encoder": good}, {"token_ids": '{"text_encoder": [99999]}'}
        ),
    }
    method = method_of(METHODS["textual_inversion"].method)
    for reason, data in bad.items():
        with pytest.raises(BaseError, match=reason):
            method.read(contents_of({tokens.FILE: data}), layouts)
