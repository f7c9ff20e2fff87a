"""`models export` and `models import`: printed code loads a model and draws as `generate` does."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from kit.records import record
from kit.training import IDENTIFIER, Trained, recipe_of
from PIL import Image
from safetensors.torch import load_file, save_file

from dbray import bases
from dbray.cli import main
from dbray.export import FORMATS
from dbray.records.models import Registry
from dbray.storage.store import Store

LORA = {"kind": "lora", "rank": 4, "alpha": 6, "targets": ["attention", "convolutions"]}
METHODS = {
    "full": recipe_of("full", train_text_encoder=True),
    "delta": recipe_of({"kind": "full", "publish": {"kind": "delta", "rank": 6}}),
    "lora": recipe_of(LORA, train_text_encoder=True),
    "pivotal": recipe_of({"kind": "pivotal", "rank": 4}),
    "inversion": recipe_of("textual_inversion", identifier_rate=0.5),
    "half": recipe_of("full", train_text_encoder=True, publish_precision="fp16"),
}
SAMPLING = ["--steps", "4", "--guidance", "3", "--seed", "7"]
POSSIBLE = {
    "full": {"diffusers", "single-file"},
    "delta": {"diffusers", "single-file", "lora", "kohya"},
    "lora": {"diffusers", "single-file", "lora", "kohya"},
    "pivotal": {"diffusers", "single-file", "lora", "kohya", "embedding"},
    "inversion": {"diffusers", "single-file", "embedding"},
    "half": {"diffusers", "single-file"},
}
REFUSED = [(model, name) for model in POSSIBLE for name in FORMATS if name not in POSSIBLE[model]]
# The LoRA file of a pivotal model is not the whole model: its embeddings are in another file.
WHOLE = [
    ("full", "diffusers"), ("full", "single-file"), ("half", "diffusers"), ("lora", "lora"),
    ("lora", "kohya"), ("pivotal", "lora"), ("inversion", "embedding"),
    ("inversion", "single-file"), ("delta", "diffusers"), ("delta", "single-file"),
]  # fmt: skip


@pytest.fixture(scope="module")
def base_folder(tiny_base, tmp_path_factory):
    """The tiny base with the steps_offset that diffusers' pipelines always set."""
    folder = tmp_path_factory.mktemp("exports") / "base"
    shutil.copytree(tiny_base, folder)
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"steps_offset": 1}))
    return folder


@pytest.fixture(scope="module")
def storage(base_folder, tmp_path_factory):
    """A storage with a model of each method, named after it."""
    folder = str(tmp_path_factory.mktemp("registry"))
    base = bases.resolve(str(base_folder))
    for name, recipe in METHODS.items():
        files = Trained(base, recipe).files
        model = record(name, base=base.name, base_digest=base.digest, recipe=recipe,
                       identifier=IDENTIFIER, files=tuple(files))  # fmt: skip
        Registry(Store(folder)).publish(model, files)
    return folder


@pytest.fixture(scope="module")
def generated(storage, base_folder, tmp_path_factory):
    """The image of `generate` for each model, and for the base."""
    return {
        model: generate(storage, base_folder, model, tmp_path_factory.mktemp("out"))
        for model in (*METHODS, "base")
    }


def generate(storage, base_folder, model, out):
    given = [model, f"a {IDENTIFIER} dog", *SAMPLING, "--registry", storage, "-o", str(out)]
    assert main(["generate", *given, "--base", str(base_folder)]) == 0
    [file] = out.glob("*.png")
    with Image.open(file) as image:
        return np.asarray(image).astype(int)


def export(storage, model, name, output, capsys):
    """Export a model; return the line that was printed."""
    given = [model, "--format", name, "-o", str(output), "--registry", storage]
    assert main(["models", "export", *given]) == 0
    return capsys.readouterr().out.splitlines()[-1]


def load(line):
    found = {}
    exec(line, found)
    return found["pipe"]


def drawn(pipe, prompt):
    generator = torch.Generator().manual_seed(7)
    image = pipe(prompt, num_inference_steps=4, guidance_scale=3, generator=generator).images[0]
    return np.asarray(image).astype(int)


def path_for(name, folder):
    return folder / ("rex" if name in ("diffusers", "lora") else "rex.safetensors")


@pytest.mark.parametrize(("model", "name"), WHOLE)
def test_the_printed_line_draws_the_same_image_as_generate(
    storage, base_folder, generated, tmp_path, capsys, model, name
):
    pipe = load(export(storage, model, name, path_for(name, tmp_path), capsys))
    if name != "diffusers":  # the other formats have no sampler
        pipe.scheduler = bases.load(bases.resolve(str(base_folder))).scheduler("ddim", 1)
    own_token = name in ("lora", "embedding") and model in ("pivotal", "inversion")
    prompt = f"a <{model}> dog" if own_token else f"a {IDENTIFIER} dog"
    assert np.abs(generated[model] - generated["base"]).max() > 4
    tolerance = 2 if METHODS[model].publish_precision == "fp16" else 1  # of 255
    assert np.abs(drawn(pipe, prompt) - generated[model]).max() <= tolerance


def test_an_exported_folder_has_one_dtype_and_its_card_draws_the_image(storage, tmp_path, capsys):
    output = tmp_path / "rex"
    export(storage, "half", "diffusers", output, capsys)
    types = {tensor.dtype for file in output.glob("*/*.safetensors")
             for tensor in load_file(file).values()}  # fmt: skip
    assert types == {torch.float32}
    index = json.loads((output / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "DDIMScheduler"]
    card = (output / "README.md").read_text()
    for wanted in ("licence of the base", f"a photo of a {IDENTIFIER} dog", "0.1.0", "full"):
        assert wanted in card
    assert str(tmp_path.parent) not in card.partition("```python")[0]
    header = yaml.safe_load(card.split("---")[1])
    assert header["instance_prompt"] == f"a photo of a {IDENTIFIER} dog"
    [example] = re.findall("```python\n(.+?)```", card, re.DOTALL)
    found = {}
    exec(example.replace("num_inference_steps=50", "num_inference_steps=1"), found)
    assert found["image"].size == (32, 32)


@pytest.mark.parametrize(("model", "name"), REFUSED)
def test_an_unsupported_format_lists_the_supported_ones(storage, tmp_path, capsys, model, name):
    output = path_for(name, tmp_path)
    given = [model, "--format", name, "-o", str(output), "--registry", storage]
    assert main(["models", "export", *given]) == 2
    message = capsys.readouterr().err
    assert f"cannot be exported as {name}" in message
    assert set(message.partition("--format ")[2].strip().split(" or ")) == POSSIBLE[model]
    assert not output.exists()


def test_an_exported_file_needs_its_suffix_and_overwrites_nothing(storage, tmp_path, capsys):
    given = ["models", "export", "lora", "--format", "kohya", "--registry", storage, "-o"]
    assert main([*given, str(tmp_path / "rex")]) == 2
    fix = f"give -o {tmp_path / 'rex.safetensors'}\n"
    assert fix in capsys.readouterr().err
    assert main([*given, str(tmp_path / "rex.safetensors")]) == 0
    assert main([*given, str(tmp_path / "rex.safetensors")]) == 2
    assert "exists; choose another -o" in capsys.readouterr().err


def test_exporting_a_lora_without_its_embeddings_warns(storage, tmp_path, capsys):
    given = ["models", "export", "pivotal", "--format", "kohya", "--registry", storage]
    assert main([*given, "-o", str(tmp_path / "rex.safetensors")]) == 0
    assert "--format embedding too; in prompts write <pivotal>" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["lora", "kohya"])
def test_a_delta_is_nearly_a_lora(storage, base_folder, generated, tmp_path, capsys, name):
    path = path_for(name, tmp_path)
    given = ["delta", "--format", name, "-o", str(path), "--registry", storage]
    assert main(["models", "export", *given]) == 0
    told = capsys.readouterr()
    assert "biases, norms and small layers are not in that file" in told.err
    pipe = load(told.out.splitlines()[-1])
    pipe.scheduler = bases.load(bases.resolve(str(base_folder))).scheduler("ddim", 1)
    model, untouched = generated["delta"], generated["base"]
    difference = np.abs(drawn(pipe, f"a {IDENTIFIER} dog") - model).mean()
    assert difference < np.abs(untouched - model).mean() / 2


def import_(file, registry, base_folder, *more):
    named = ["--subject", "rex", "--class", "dog", "--base", str(base_folder), *more]
    return main(["models", "import", str(file), *named, "--registry", str(registry)])


@pytest.mark.parametrize("name", ["kohya", "lora"])
def test_an_imported_lora_draws_the_same_image(
    storage, base_folder, generated, tmp_path, capsys, name
):
    path = path_for(name, tmp_path)
    export(storage, "lora", name, path, capsys)
    file = path / "pytorch_lora_weights.safetensors" if path.is_dir() else path
    registry = tmp_path / "imported"
    assert import_(file, registry, base_folder, "--identifier", IDENTIFIER) == 0
    found = Registry(Store(str(registry))).find("rex")
    assert capsys.readouterr().out == f"published {found.name}\n"
    assert found.metadata["imported_from"] == file.name
    assert (found.steps, found.image_digests, found.recipe.method.kind) == (0, (), "lora")
    image = generate(str(registry), base_folder, "rex", tmp_path / "out")
    assert np.abs(image - generated["lora"]).max() <= 1


def test_importing_again_is_idempotent_and_another_identifier_is_another_revision(
    storage, base_folder, tmp_path, capsys
):
    file = tmp_path / "a.safetensors"
    export(storage, "lora", "kohya", file, capsys)
    registry = tmp_path / "imported"
    for identifier in ("zb", "zb", "zc"):
        assert import_(file, registry, base_folder, "--identifier", identifier) == 0
    revisions = Registry(Store(str(registry))).revisions("rex")
    assert sorted(one.identifier for one in revisions) == ["zb", "zc"]


def test_a_file_that_is_not_a_lora_for_the_base_is_not_imported(
    storage, base_folder, tmp_path, capsys
):
    file, registry = tmp_path / "a.safetensors", tmp_path / "imported"
    export(storage, "lora", "kohya", file, capsys)
    tensors = load_file(file)
    cases = {
        "'lora_unet_nowhere'": tensors | {"lora_unet_nowhere.lora_up.weight": torch.ones(1, 1)},
        "name no layer of the base, e.g. 'odd'": tensors | {"odd": torch.ones(1)},
        "is not finite": {key: tensor * float("nan") for key, tensor in tensors.items()},
    }
    for reason, changed in cases.items():
        save_file(changed, file)
        assert import_(file, registry, base_folder) == 2
        assert reason in capsys.readouterr().err
    file.write_bytes(b"no tensors")
    assert import_(file, registry, base_folder) == 2
    assert "is not a safetensors file" in capsys.readouterr().err
    assert import_(tmp_path / "missing", registry, base_folder) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert not registry.exists()


def test_an_invalid_subject_id_is_not_imported(base_folder, tmp_path, capsys):
    named = ["--subject", "Rex!", "--class", "{dog}", "--base", str(base_folder)]
    given = ["models", "import", "a.safetensors", *named, "--registry", str(tmp_path)]
    assert main(given) == 2
    message = capsys.readouterr().err
    assert "id" in message
    assert "class noun" in message
