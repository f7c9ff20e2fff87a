"""A second base that serves what is trained on the first; distilled bases are not trained."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from kit.families import FAMILIES
from kit.records import record
from kit.serving import perturbed
from kit.training import IDENTIFIER, Trained, recipe_of
from kit.worlds import load_job, write_photos
from PIL import Image

from dbray import bases
from dbray.cli import main
from dbray.lanes.beat import Clock
from dbray.lanes.publish import Publisher
from dbray.planning.checks import check_job
from dbray.planning.plan import make_plan
from dbray.records.models import Registry
from dbray.serving.app import with_base
from dbray.serving.options import ServeOptions
from dbray.serving.replica.weights import Source
from dbray.spec.job import Job
from dbray.storage.store import Store
from dbray.training.loop import Progress

LORA = {"kind": "lora", "rank": 2}


@pytest.fixture(scope="module")
def turbo(tiny_base, tmp_path_factory):
    """The tiny base with another UNet, under the name of a distilled one."""
    folder = tmp_path_factory.mktemp("distilled") / "tiny-turbo"
    shutil.copytree(tiny_base, folder)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(perturbed(tiny_base, seed=3))
    return folder


def checked(tmp_path, base, method, **changes):
    return check_job(load_job(tmp_path, base, {"ace": "cat"}, recipe={"method": method}, **changes))


def test_a_distilled_base_is_refused_for_training_with_the_reason(tmp_path, turbo):
    [error] = checked(tmp_path, turbo, LORA).errors
    assert "'tiny-turbo' is distilled to few steps by its name" in error.what
    assert "training would undo that" in error.what
    assert "this one as serve_base" in error.fix


def test_it_may_serve_an_adapter_or_a_delta(tmp_path, tiny_base, turbo):
    for number, method in enumerate((LORA, {"kind": "full", "publish": "delta"})):
        found = checked(tmp_path / str(number), tiny_base, method, serve_base=str(turbo),
                        previews={"steps": 3})  # fmt: skip
        assert found.errors == []
        assert found.base.name == str(tiny_base)
        assert found.base.serving.name == str(turbo)


def test_previews_are_sampled_as_suits_the_base_that_serves(tmp_path, tiny_base, turbo):
    write_photos(tmp_path / "photos", {"ace": "cat"})
    job = Job(base=str(tiny_base), serve_base=str(turbo), subjects=str(tmp_path / "photos"),
              recipe={"method": LORA})  # fmt: skip
    found = check_job(job)
    assert (found.job.previews.steps, found.job.previews.guidance) == (4, 1.0)
    assert found.job.prior.steps == 50


def test_a_full_fine_tune_cannot_be_served_by_another_base(tmp_path, tiny_base, turbo):
    [error] = checked(tmp_path, tiny_base, "full", serve_base=str(turbo)).errors
    assert "whole parts, which would replace those of serve_base" in error.what
    assert "set method to lora" in error.fix


def test_a_base_of_other_layers_or_of_another_family_is_refused(tmp_path, tiny_base):
    other = FAMILIES["sdxl"].build(tmp_path / "xl")
    [error] = checked(tmp_path / "a", tiny_base, LORA, serve_base=str(other)).errors
    assert "it is Stable Diffusion XL, but the base is" in error.what
    flat = FAMILIES["flux"].build(tmp_path / "flat", deep=False)
    deep = FAMILIES["flux"].build(tmp_path / "deep")
    errors = checked(tmp_path / "b", deep, LORA, serve_base=str(flat)).errors
    assert any("its transformer has other layers" in error.what for error in errors)
    [error] = checked(tmp_path / "c", tiny_base, LORA, serve_base="nowhere/turbo").errors
    assert "set serve_base_revision" in error.what


def test_the_record_names_both(tmp_path, tiny_base, turbo):
    job = load_job(tmp_path, tiny_base, {"ace": "cat"}, recipe={"method": LORA},
                   serve_base=str(turbo))  # fmt: skip
    store = Store(job.storage)
    plan = make_plan(check_job(job).ready(), store)
    without = make_plan(check_job(job.model_copy(update={"serve_base": None})).ready(), store)
    assert plan.to_train[0].fingerprint == without.to_train[0].fingerprint
    publisher = Publisher(plan.job, plan.base)
    publisher.publish(plan.to_train[0], [({"lora.safetensors": b""}, Progress())], Clock())
    found = Registry(store).find("ace")
    assert (found.base, found.served_by) == (str(tiny_base), (str(turbo), None))
    assert found.fits(plan.base.digest)
    assert found.fits(bases.resolve(str(turbo)).digest)
    assert not found.fits("0" * 64)


def test_it_is_served_and_drawn_by_the_base_that_serves(tmp_path, tiny_base, turbo):
    base, serving = bases.resolve(str(tiny_base)), bases.resolve(str(turbo))
    recipe = recipe_of(LORA)
    files = Trained(base, recipe).files
    model = record("rex", base=base.name, base_digest=base.digest, recipe=recipe,
                   identifier=IDENTIFIER, files=tuple(files), serve_base=serving.name,
                   serve_base_digest=serving.digest)  # fmt: skip
    registry = Registry(Store(str(tmp_path)))
    registry.publish(model, files)
    assert with_base(ServeOptions(registry=str(tmp_path))).base == serving.name
    backbone = bases.load(serving)
    weights, _ = Source(registry, backbone, tmp_path / "scratch").read(model.name, None)
    backbone.resident.put(weights.weights)
    images = [draw(tmp_path, tmp_path / str(number), *options)
              for number, options in enumerate([(), ("--base", str(tiny_base))])]  # fmt: skip
    from dbray.bases.generate import Sampling, generate

    [expected] = generate(backbone, [f"a {IDENTIFIER} dog"], [0], Sampling("ddim", 2, 3.0))
    assert np.abs(images[0] - expected.astype(int)).max() <= 1
    assert np.abs(images[1] - images[0]).max() > 4


def draw(registry, out, *options):
    sampling = ["--steps", "2", "--guidance", "3", "--seed", "0", "--sampler", "ddim"]
    given = ["rex", f"a {IDENTIFIER} dog", *sampling, "--registry", str(registry), *options]
    assert main(["generate", *given, "-o", str(out)]) == 0
    [file] = out.glob("*.png")
    with Image.open(file) as image:
        return np.asarray(image).astype(int)
