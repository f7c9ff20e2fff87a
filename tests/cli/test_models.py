"""Commands for published models: their errors and messages."""

from __future__ import annotations

import pytest
from kit.records import record
from safetensors.torch import save

from dbray import bases
from dbray.cli import main
from dbray.records.models import Registry
from dbray.spec.sections import Recipe
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
