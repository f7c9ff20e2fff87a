"""A step is compiled once per lane: neither subjects nor models that are put in make another graph.

The compiler counts the graphs that torch hands to it, and runs them as they are.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from kit.records import record
from kit.training import IDENTIFIER, Trained, recipe_of
from pydantic import ValidationError
from torch._dynamo.testing import CompileCounter

from dbray import bases
from dbray.method.methods import method_of
from dbray.method.stages import put
from dbray.spec.recipe import Recipe
from dbray.spec.resources import Resources
from dbray.training import plain
from dbray.training.loop import finetune
from dbray.training.plain import in_precision

CPU = torch.device("cpu")
COMPILED = Resources(compile=True)
METHODS = ["full", {"kind": "lora", "rank": 2}, {"kind": "pivotal", "rank": 2}]


@pytest.fixture
def base(tiny_base):
    return bases.resolve(str(tiny_base))


@pytest.fixture
def compiler(monkeypatch):
    torch._dynamo.reset()
    counter = CompileCounter()
    monkeypatch.setattr(plain, "COMPILER", counter)
    return counter


@pytest.mark.parametrize("settings", METHODS, ids=["full", "lora", "pivotal"])
def test_three_subjects_share_one_graph(base, compiler, settings):
    recipe = recipe_of(settings, steps=2)
    trained = Trained(base, recipe, resources=COMPILED)
    method, engine = method_of(recipe.method), trained.engine
    assert compiler.frame_count == 1
    for other in ("tom", "fido"):
        engine.reset()
        engine.assign(method.begin(engine.module, IDENTIFIER))
        data = replace(trained.data, subject_id=other)
        schedule = trained.backbone.schedule
        finetune(engine, schedule, data, recipe, after_step=method.after_step)
    assert compiler.frame_count == 1
    assert trained.files == Trained(base, recipe).files


@pytest.mark.parametrize("settings", METHODS[:2], ids=["full", "lora"])
def test_models_that_are_put_in_change_what_a_compiled_network_answers(
    base, compiler, tmp_path, settings
):
    recipe = recipe_of(settings, steps=1)
    files = {}
    for name, data in Trained(base, recipe).files.items():
        files[name] = tmp_path / name
        files[name].write_bytes(data)
    backbone = bases.load(base)
    network = in_precision(
        backbone.network((base.family.denoiser,)), Recipe(), COMPILED, CPU
    ).eval()
    condition = backbone.condition(["a dog"])
    latents = torch.randn(1, *backbone.latent_shape(), generator=torch.Generator().manual_seed(0))
    timesteps, answers = torch.tensor([500]), []
    for model in (None, files, None):
        if model is None:
            backbone.resident.put(None)
        else:
            put(backbone, record(recipe=recipe), model)
        with torch.no_grad():
            answers.append(network(latents, timesteps, condition.tensors))
        assert torch.equal(answers[-1], backbone.denoise(latents, timesteps, condition))
    assert torch.equal(answers[0], answers[2])
    assert not torch.equal(answers[0], answers[1])
    assert compiler.frame_count == 1


@pytest.mark.parametrize(("resources", "reason"), [
    ({"compile": True, "zero_stage": 3}, "leave out compile"),
    ({"offload": "optimiser"}, "set zero_stage to 1, 2 or 3"),
    ({"offload": "optimiser", "zero_stage": 1, "device": "cpu"}, "leave out offload"),
])  # fmt: skip
def test_what_means_nothing_is_refused_with_the_reason(resources, reason):
    with pytest.raises(ValidationError, match=reason):
        Resources.model_validate(resources)
