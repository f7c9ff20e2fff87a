"""Every family is trained, published, sampled, served, exported and read back."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit.bases import build_tiny_base
from kit.families import FAMILIES
from kit.families.flows import CASES
from kit.records import record
from kit.training import IDENTIFIER, SIDE, Trained, recipe_of
from kit.transformers import delta
from PIL import Image
from safetensors.torch import save_file

from dbray import bases
from dbray.bases.families import flow_family
from dbray.cli import main
from dbray.export import FORMATS, format_of
from dbray.export.comfyui import to_comfyui
from dbray.export.imported import layer_shapes
from dbray.export.kohya import to_kohya
from dbray.export.reading import read_adapter
from dbray.export.source import Source
from dbray.method.factors import Factors, canonical, to_published
from dbray.method.mixing import mixed
from dbray.records.models import Registry
from dbray.serving.messages import Answer, Ask, Share
from dbray.serving.options import ServeOptions
from dbray.serving.replica import painter
from dbray.serving.replica.replica import Replica
from dbray.spec.sections import Previews
from dbray.storage.store import Store
from dbray.subjects.images import decode_png

METHODS = {
    "full": recipe_of("full", steps=2, resolution=SIDE),
    "lora": recipe_of(
        {"kind": "lora", "rank": 4, "alpha": 6}, steps=2, resolution=SIDE, learning_rate=0.05
    ),
}
IN_T5 = {
    "pivotal": recipe_of(
        {"kind": "pivotal", "rank": 4}, steps=2, resolution=SIDE, learning_rate=0.05,
        identifier_rate=0.5,
    )
}  # fmt: skip
"""Of DeepFloyd IF: no file but a whole pipeline holds embeddings that T5 has learnt."""
MODELS = [(name, method) for name in ("stable_diffusion", *FAMILIES) for method in METHODS]
MODELS += [("deepfloyd_if", method) for method in IN_T5]
PROMPT = f"a {IDENTIFIER} dog"
STEPS, SEED = 3, 7


@dataclass(frozen=True)
class World:
    """A family's base, and a storage with a model of each method, named after it."""

    name: str
    base: Path
    storage: Path

    @property
    def is_flow(self) -> bool:
        return self.name in CASES

    @property
    def guidance(self) -> float:
        """dbray's."""
        return CASES[self.name].guidance if self.is_flow else 3.0

    @property
    def is_original(self) -> bool:
        """Whether it is a UNet over latents: other programs load its checkpoints."""
        return self.name in ("stable_diffusion", "sdxl")

    def formats(self, method: str) -> set[str]:
        """What a model of a method can be exported as."""
        whole = {"diffusers"} | ({"single-file"} if self.is_original else set())
        factors = {"lora"} | ({"comfyui"} if self.is_flow else set())
        factors |= {"kohya"} if self.is_original else set()
        return whole | (factors if method == "lora" else set())

    def generate(self, model: str, storage: Path, out: Path) -> np.ndarray:
        """What `dbray generate` draws."""
        given = ["--steps", str(STEPS), "--guidance", str(self.guidance), "--seed", str(SEED)]
        given += ["--registry", str(storage), "--base", str(self.base), "-o", str(out)]
        assert main(["generate", model, PROMPT, *given]) == 0
        [file] = out.glob("*.png")
        with Image.open(file) as image:
            return np.asarray(image).astype(int)

    def draw(self, pipe: Any) -> np.ndarray:
        """What diffusers' pipeline draws, as numbers up to 255."""
        options = CASES[self.name].options if self.is_flow else {"guidance_scale": self.guidance}
        pipe.set_progress_bar_config(disable=True)
        image = pipe(
            prompt=PROMPT, num_inference_steps=STEPS, height=SIDE, width=SIDE, output_type="np",
            generator=torch.Generator().manual_seed(SEED),
            **(dict(FAMILIES[self.name].options) if self.name in FAMILIES else {}), **options,
        ).images[0]  # fmt: skip
        return 255 * image

    def sampler(self) -> Any:
        """The sampler of `dbray generate`, for files that hold none."""
        base = bases.resolve(str(self.base))
        return base.family.scheduler(base.fill(Previews()).sampler, base.layout.config("scheduler"))


@pytest.fixture(scope="module", autouse=True)
def own_resolution():
    """Let tiny flow bases have images of their own size by default, as real ones do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flow_family, "NATIVE_LATENTS", 8)
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Make the world of a family once."""
    made: dict[str, World] = {}

    def world_of(name: str) -> World:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            build = FAMILIES[name].build if name in FAMILIES else build_with_offset
            made[name] = World(name, build(folder / "base"), folder / "runs")
            base = bases.resolve(str(made[name].base))
            for method, recipe in (METHODS | (IN_T5 if name == "deepfloyd_if" else {})).items():
                files = Trained(base, recipe).files
                model = record(method, base=base.name, base_digest=base.digest, recipe=recipe,
                               identifier=IDENTIFIER, files=tuple(files))  # fmt: skip
                Registry(Store(str(folder / "runs"))).publish(model, files)
        return made[name]

    return world_of


def build_with_offset(folder: Path) -> Path:
    """A Stable Diffusion with the offset that diffusers' pipeline has in any case."""
    build_tiny_base(folder)
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"steps_offset": 1}))
    return folder


def export(world: World, model: str, name: str, output: Path, capsys) -> str:
    """Export a model; return the line that was printed."""
    given = [model, "--format", name, "-o", str(output), "--registry", str(world.storage)]
    assert main(["models", "export", *given]) == 0
    return capsys.readouterr().out.splitlines()[-1]


def load(line: str) -> Any:
    found: dict[str, Any] = {}
    exec(line, found)
    return found["pipe"]


@pytest.mark.parametrize(("name", "method"), MODELS)
def test_every_format_is_read_back_with_the_same_image(world, tmp_path, capsys, name, method):
    here = world(name)
    drawn = here.generate(method, here.storage, tmp_path / "out")
    untouched = here.generate("base", here.storage, tmp_path / "base")
    assert np.abs(drawn - untouched).max() > 4
    for one in here.formats(method):
        output = tmp_path / one / ("rex" if one in ("diffusers", "lora") else "rex.safetensors")
        pipe = load(export(here, method, one, output, capsys))
        if one != "diffusers":
            pipe.scheduler = here.sampler()
        assert np.abs(here.draw(pipe) - drawn).max() <= 1, one


@pytest.mark.parametrize(("name", "method"), MODELS)
def test_other_formats_are_rejected(world, name, method):
    here = world(name)
    registry = Registry(Store(str(here.storage)))
    found = registry.find(method)
    files = registry.weights(found, here.storage)
    source = Source(bases.resolve(str(here.base)), found, files)
    possible = {one for one in FORMATS if format_of(one).why_not(source) is None}
    assert possible == here.formats(method)


@pytest.mark.parametrize("name", ["stable_diffusion", *FAMILIES])
def test_an_exported_lora_is_imported_again(world, tmp_path, capsys, name):
    here = world(name)
    drawn = here.generate("lora", here.storage, tmp_path / "out")
    for one in here.formats("lora") - {"diffusers", "single-file"}:
        output = tmp_path / one / ("rex" if one == "lora" else "rex.safetensors")
        export(here, "lora", one, output, capsys)
        file = output / "pytorch_lora_weights.safetensors" if output.is_dir() else output
        named = ["--subject", "rex", "--class", "dog", "--identifier", IDENTIFIER]
        registry = tmp_path / f"imported-{one}"
        given = ["models", "import", str(file), *named, "--base", str(here.base)]
        assert main([*given, "--registry", str(registry)]) == 0
        again = here.generate("rex", registry, tmp_path / f"out-{one}")
        assert np.abs(again - drawn).max() <= 1, one


@pytest.mark.parametrize("name", ["stable_diffusion", *FAMILIES])
def test_a_replica_serves_the_image_of_generate(world, tmp_path, monkeypatch, name):
    here = world(name)
    options = ServeOptions(registry=str(here.storage), base=str(here.base), device="cpu")
    replica, unmerged = Replica(options), []
    monkeypatch.setattr(painter, "mixed", lambda *given: unmerged.append(given) or mixed(*given))
    try:
        for model in (*METHODS, "base"):
            drawn = here.generate(model, here.storage, tmp_path / model)
            assert np.abs(serve(replica, here, model) - drawn).max() <= 1, model
            if model == "lora":
                monkeypatch.setattr(replica._backbone, "is_exact", False)
                assert np.abs(serve(replica, here, model) - drawn).max() <= 1, model
        assert len(unmerged) == 1
    finally:
        replica.close()


def serve(replica: Replica, here: World, model: str) -> np.ndarray:
    models = ()
    if model != "base":
        found = Registry(Store(str(here.storage))).find(model)
        models = (Share(found.id, found.revision),)
    ask = Ask(models, tenant="t", prompt=PROMPT, deadline_seconds=60.0, seeds=(SEED,),
              sampling={"steps": STEPS, "guidance": here.guidance}, size=(SIDE, SIDE))  # fmt: skip
    answer = asyncio.run(replica.generate(ask))
    assert isinstance(answer, Answer), answer
    [image] = answer.images
    return decode_png(image).astype(int)


def random_factors(base: bases.Base) -> dict[str, Factors]:
    """Factors for all that a LoRA of a base trains by default; keys have a smaller rank."""
    family, draw = base.family, torch.Generator().manual_seed(0)
    ends = dict.fromkeys(family.encoders_to_train, family.text_targets)
    groups = (family.targets[group] for group in family.default_targets)
    ends[family.denoiser] = tuple(end for group in groups for end in group)
    factors = {}
    for layer, shape in layer_shapes(base).items():
        part, _, path = layer.partition(".")
        if f".{path}".endswith(tuple(f".{end}" for end in ends.get(part, ()))):
            rank = 2 if layer.endswith("to_k") else 3
            pointwise = (1,) * (len(shape) - 2)
            down = torch.randn(rank, *shape[1:], generator=draw)
            up = torch.randn(shape[0], rank, *pointwise, generator=draw)
            factors[canonical(layer)] = Factors(down, up, alpha=1.5 * rank)
    return factors


@pytest.mark.parametrize("name", FAMILIES)
def test_random_factors_are_read_back_from_keys_of_all_programs(tmp_path, name):
    tiny = FAMILIES[name]
    base = bases.resolve(str(tiny.build(tmp_path / "base")))
    adapter, shapes = random_factors(base), layer_shapes(base)
    assert {layer.partition(".")[0] for layer in adapter} >= {base.family.denoiser}
    published, about = to_published(adapter)
    denoiser = base.layout.config(base.family.denoiser)["_class_name"]
    found = [read_adapter(published, about, shapes)]
    if name == "sdxl":
        found.append(read_adapter(to_kohya(adapter, 2), {}, shapes))
    elif name in CASES:
        found.append(read_adapter(to_comfyui(adapter, denoiser), {}, shapes))
    for again in found:
        assert again.keys() == adapter.keys()
        for layer, factors in adapter.items():
            torch.testing.assert_close(delta(again[layer]), delta(factors))
    save_file(published, tmp_path / "rex.safetensors", about)
    pipe = tiny.load(base.folder)
    pipe.load_lora_weights(tmp_path, weight_name="rex.safetensors", adapter_name="rex")
    seen = {}
    for part in {layer.partition(".")[0] for layer in adapter}:
        for path, module in getattr(pipe, part).named_modules():
            if hasattr(module, "lora_A"):
                down, up = module.lora_A["rex"].weight, module.lora_B["rex"].weight
                seen[canonical(f"{part}.{path}")] = module.scaling["rex"] * up @ down
    assert seen.keys() == adapter.keys()
    for layer, found in seen.items():
        torch.testing.assert_close(found, delta(adapter[layer]))
