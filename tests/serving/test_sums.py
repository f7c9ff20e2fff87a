"""dbray.serving.http.sums: the names of several models, and which can be added up."""

from __future__ import annotations

import json

import pytest
from jsonschema import Draft202012Validator
from kit.records import record

from dbray.serving.http import sums
from dbray.serving.http.wire import GenerationRequest, parse_request
from dbray.serving.messages import Ask, Refused, Share, names_of, shares_of
from dbray.spec.recipe import Recipe

ALIASES = {"dall-e-3": "rex+watercolour", "old": "rex"}


def named(**body):
    return sums.named(GenerationRequest.model_validate({"prompt": "p"} | body), ALIASES)


def model(name, method="lora", **fields):
    return record(name, recipe=Recipe.model_validate({"method": method}), **fields)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, []),
        ({"model": "base"}, []),
        ({"model": "rex"}, [("rex", 1.0)]),
        ({"model": "old@abcdef"}, [("old@abcdef", 1.0)]),
        ({"model": "rex+watercolour"}, [("rex", 1.0), ("watercolour", 1.0)]),
        ({"model": "dall-e-3+mia"}, [("rex", 1.0), ("watercolour", 1.0), ("mia", 1.0)]),
        ({"models": [{"model": "old", "weight": 0.5}]}, [("rex", 0.5)]),
        ({"models": [{"model": "a"}, {"model": "b", "weight": -1.0}]}, [("a", 1.0), ("b", -1.0)]),
    ],
)
def test_models_are_named_one_or_several(body, expected):
    assert named(**body) == expected


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"model": "rex+base"}, "base is part of every model"),
        ({"models": [{"model": "base", "weight": 0.5}]}, "base is part of every model"),
        ({"model": "dall-e-3+a+b+c"}, "at most 4"),
    ],
)
def test_names_that_cannot_be_added_up_are_refused(body, message):
    with pytest.raises(Refused) as caught:
        named(**body)
    refusal = caught.value.refusal
    assert (refusal.status, refusal.code, refusal.param) == (400, "not_combinable", "model")
    assert message in refusal.message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"prompt": "p", "model": "a+b+c+d+e"}', "Invalid 'model'"),
        (b'{"prompt": "p", "model": "rex+"}', "Invalid 'model'"),
        (b'{"prompt": "p", "model": "rex*0.5"}', "Invalid 'model'"),
        (b'{"prompt": "p", "models": []}', "Invalid 'models'"),
        (b'{"prompt": "p", "models": [{"model": "a", "weight": 3}]}', "Invalid 'models[0].weight'"),
        (b'{"prompt": "p", "models": [{"weight": 1}]}', "Missing required parameter: 'models[0].m"),
        (b'{"prompt": "p", "models": [{"model": "a", "wait": 1}]}', "parameter: 'models[0].wait'"),
        (b'{"prompt": "p", "models": [{"model": "a", "secret text": 1}]}', "'models[0].?'"),
    ],
)
def test_a_wrong_list_of_models_is_refused_with_its_place(body, message):
    with pytest.raises(Refused) as caught:
        parse_request(body)
    assert message in caught.value.refusal.message
    assert "secret" not in caught.value.refusal.message


def test_the_schema_allows_either_model_or_models():
    schema = Draft202012Validator(GenerationRequest.model_json_schema())
    models = [{"model": "rex", "weight": 1}]
    assert parse_request(json.dumps({"prompt": "p", "models": models}).encode()).weighted == [
        ("rex", 1.0)
    ]
    for body in ({"model": "rex"}, {"models": models}, {"model": None, "models": models}, {}):
        assert schema.is_valid({"prompt": "p"} | body)
    assert not schema.is_valid({"prompt": "p", "model": "rex", "models": models})


def test_low_rank_models_of_one_base_can_be_added_up():
    kinds = ("lora", "pivotal", "textual_inversion")
    sums.check([model(f"m{index}", kind) for index, kind in enumerate(kinds)], [1.0, 0.5, -1.0])
    sums.check([model("rex")], [0.5])
    sums.check([model("whole", "full")], [1.0])
    served = model("b", base_digest="2" * 64, serve_base="miniature", serve_base_digest="0" * 64)
    sums.check([model("a"), served], [1.0, 1.0])


@pytest.mark.parametrize(
    ("records", "weights", "message"),
    [
        ([model("rex"), model("whole", "full")], [1.0, 1.0], "'whole' is not a low-rank model"),
        ([model("whole", "full")], [0.5], "'whole' is not a low-rank model"),
        ([model("d", {"kind": "lora", "dora": True})], [0.5], "'d' is not a low-rank model"),
        (
            [model("d", {"kind": "full", "publish": "delta"}), model("rex")],
            [1.0, 1.0],
            "'d' is not a low-rank model",
        ),
        ([model("rex"), model("rex", number=1)], [1.0, 1.0], "'rex' is named twice"),
        ([model("rex"), model("x", base_digest="2" * 64)], [1.0, 1.0], "another base than 'rex'"),
    ],
)
def test_models_that_cannot_be_added_up_are_refused(records, weights, message):
    with pytest.raises(Refused) as caught:
        sums.check(records, weights)
    assert caught.value.refusal.status == 400
    assert message in caught.value.refusal.message


def test_a_key_names_the_models_and_their_weights():
    shares = (Share("rex", "abc"), Share("a.b-c", "def", 0.1), Share("mia", "012", -1.0))
    ask = Ask(shares, "t", "p", (1,), 1.0)
    assert ask.key == "rex@abc+a.b-c@def*0.1+mia@012*-1.0"
    assert ask.subject == "rex"
    assert shares_of(ask.key) == shares
    assert names_of(ask.key) == {"rex@abc", "a.b-c@def", "mia@012"}
    assert (Ask((), "t", "p", (1,), 1.0).key, shares_of("base")) == ("base", ())
