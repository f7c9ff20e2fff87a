"""Commands for published models: their errors and messages."""

from __future__ import annotations

import json

import pytest
from kit.records import publish, record
from kit.scores import GOOD, scores
from safetensors.torch import save

from dbray import bases
from dbray.cli import main
from dbray.records import scores as layout
from dbray.records.models import Registry
from dbray.spec.recipe import Recipe
from dbray.storage.store import Store


@pytest.fixture(scope="module")
def storage(tiny_base, tmp_path_factory):
    """A storage with one model, rex, whose weights are the base's."""
    base = bases.resolve(str(tiny_base))
    unet = dict(bases.load(base).models["unet"].state_dict())
    folder = str(tmp_path_factory.mktemp("registry"))
    model = record(base=base.name, base_digest=base.digest, recipe=Recipe(publish_precision="fp32"))
    Registry(Store(folder)).publish(model, {"unet.safetensors": save(unet)})
    return folder


@pytest.mark.parametrize(
    "command",
    [["models", "list"], ["models", "show", "rex"], ["models", "remove", "rex", "--yes"],
     ["models", "export", "rex", "-o", "out"], ["generate", "rex", "a {subject}"]],
)  # fmt: skip
def test_a_missing_storage_is_reported(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    assert main([*command, "--registry", "nowhere"]) == 2
    assert f"there is no folder {tmp_path / 'nowhere'}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_storage_without_models_lists_no_models(tmp_path, capsys):
    assert main(["models", "list", "--registry", str(tmp_path)]) == 0
    assert "no models" in capsys.readouterr().err


def test_a_missing_model_is_reported_with_its_storage(storage, capsys):
    assert main(["models", "show", "zzz", "--registry", storage]) == 2
    assert f"published in {storage}\n" in capsys.readouterr().err


@pytest.mark.parametrize("model", ["rex", "base"])
@pytest.mark.parametrize("prompt", ["a {subjct} dog", "a {subject", "a dog}"])
def test_unknown_placeholders_are_rejected(storage, tiny_base, tmp_path, capsys, model, prompt):
    arguments = ["--registry", storage, "--base", str(tiny_base), "-o", str(tmp_path / "out")]
    assert main(["generate", model, prompt, *arguments]) == 2
    assert repr(prompt) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "command",
    [["models", "export", "rex"], ["generate", "rex", "a {subject}", "--steps", "1"]],
)
def test_an_output_below_a_file_is_rejected(storage, tmp_path, capsys, command):
    (tmp_path / "file").write_text("mine")
    output = tmp_path / "file" / "x"
    assert main([*command, "-o", str(output), "--registry", storage]) == 2
    printed = capsys.readouterr().err
    assert f"{output}: cannot be written" in printed
    assert "choose another -o" in printed


@pytest.fixture
def scored(tmp_path):
    """A storage with a good model, one with a fault, and one without scores."""
    store = Store(str(tmp_path))
    for name, found in (("bad", scores(identity=0.31)), ("good", GOOD), ("new", None)):
        model = publish(tmp_path, record(name))
        if found is not None:
            layout.annex(store, model.name).publish(layout.files_of(found, {}))
    return str(tmp_path)


def test_scores_are_listed_and_sorted_best_first(scored, capsys):
    assert main(["models", "list", "--registry", scored, "--sort", "identity"]) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split()[:4] == ["model", "subject", "identity", "margin"]
    assert [row.partition("@")[0] for row in rows] == ["good", "bad", "new"]
    assert "does not resemble its subject" in rows[1]
    assert "not scored" in rows[2]


def test_scores_and_flags_are_in_the_json(scored, capsys):
    assert main(["models", "list", "--registry", scored, "--sort", "drift", "--json"]) == 0
    found = {one["id"]: one for one in json.loads(capsys.readouterr().out)}
    assert found["good"]["scores"]["identity"] == GOOD.identity
    assert found["good"]["flags"] == []
    assert [flag["kind"] for flag in found["bad"]["flags"]] == ["unlike"]
    assert "scores" not in found["new"]


def test_a_model_s_flags_are_shown_with_the_change_to_try(scored, capsys):
    assert main(["models", "show", "bad", "--registry", scored]) == 0
    text = capsys.readouterr().out
    assert "0.310 base 0.300, ceiling 0.800" in text
    assert "double recipe.steps" in text
    assert main(["models", "show", "new", "--registry", scored]) == 0
    assert "score" not in capsys.readouterr().out


def test_a_registry_without_scores_is_listed_as_before(storage, capsys):
    assert main(["models", "list", "--registry", storage]) == 0
    [row] = capsys.readouterr().out.splitlines()
    assert row.split()[0].startswith("rex@")
    assert row.split()[1:3] == ["zx", "dog"]
