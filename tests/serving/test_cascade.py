"""A server of models of a cascade: every image passes all stages as the model's record says."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from kit.families.super_resolution import LOW_SIDE, SUPER_RESOLUTION, build_cascade
from kit.serving import publish

from dbray import bases
from dbray.bases.defaults import fill_super_resolution
from dbray.bases.generate import Sampling, generate
from dbray.export.source import Source
from dbray.records.models import Registry
from dbray.serving.app import with_base
from dbray.serving.messages import Answer, Ask, Share
from dbray.serving.options import ServeOptions
from dbray.serving.replica.replica import Replica
from dbray.spec.sections import Previews
from dbray.spec.super_resolution import SuperResolution
from dbray.storage.store import Store
from dbray.subjects.images import decode_png

pytestmark = pytest.mark.timeout(120)

PROMPT = "a photo of zx dog"
SEED = 7


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return build_cascade(tmp_path_factory.mktemp("base"), "deepfloyd_if_ii") / "first"


@pytest.fixture(scope="module")
def third(tmp_path_factory):
    return SUPER_RESOLUTION["x4_upscaler"].build(tmp_path_factory.mktemp("third") / "base")


@pytest.mark.parametrize("has_third", [False, True])
@pytest.mark.parametrize("is_model", [False, True])
def test_an_image_passes_all_stages_of_its_model(first, third, tmp_path, has_third, is_model):
    then = {"base": str(third), "steps": 2} if has_third else None
    second = str(first.parent / "super_resolution")
    given = SuperResolution.model_validate(
        {"base": second, "train": False, "noise_level": 90 * is_model, "steps": 2, "then": then}
    )
    base = bases.with_stage(bases.resolve(str(first)), given)
    stage = fill_super_resolution(base, given)
    record = publish(
        tmp_path, first, "rex", super_resolution=stage,
        super_resolution_digest=base.super_resolution.digest,
    )  # fmt: skip
    options = ServeOptions(registry=str(tmp_path), device="cpu")
    replica = Replica(with_base(options))
    try:
        answer = asyncio.run(replica.generate(Ask(
            (Share(record.id, record.revision),) if is_model else (), tenant="t", prompt=PROMPT,
            seeds=(SEED,), deadline_seconds=60.0, sampling={"sampler": "ddpm", "steps": 2},
            super_resolution=stage if is_model else None,
        )))  # fmt: skip
    finally:
        replica.close()
    assert isinstance(answer, Answer), answer
    found = decode_png(answer.images[0]).astype(int)
    registry = Registry(Store(str(tmp_path)))
    own = (record, registry.weights(record, tmp_path)) if is_model else ()
    backbone = Source(base, *own).backbone
    shown = stage if is_model else fill_super_resolution(base, SuperResolution(then=given.then))
    how = Sampling.of(base.fill(Previews(sampler="ddpm", steps=2))).through(shown)
    [wanted] = generate(backbone, [PROMPT], [SEED], how)
    assert found.shape[0] == LOW_SIDE * base.enlargement == LOW_SIDE * (16 if has_third else 4)
    assert np.abs(found - wanted).max() <= 1
