"""A job on a cascade from end to end: class images, lanes, previews, report."""

from __future__ import annotations

import io

import numpy as np
import pytest
from kit.families.super_resolution import SUPER_RESOLUTION, build_cascade
from kit.records import files_of
from kit.worlds import load_job
from PIL import Image

from dbray.records import previews
from dbray.records.models import Registry
from dbray.records.prior_sets import load_images
from dbray.run.job import run_job
from dbray.storage.store import Store

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize(("name", "third", "side"), [
    ("deepfloyd_if_ii", "x4_upscaler", 512), ("x4_upscaler", None, 128),
])  # fmt: skip
def test_subjects_are_published_with_all_stages_and_previews(
    ray_session, tmp_path, name, third, side
):
    cascade = build_cascade(tmp_path / "base", name)
    then = third and {"base": str(SUPER_RESOLUTION[third].build(tmp_path / "third")), "steps": 2}
    recipe = {"method": {"kind": "lora", "rank": 4}, "steps": 3, "resolution": 32}
    job = load_job(
        tmp_path, cascade, {"ace": "cat", "bob": "dog"}, recipe=recipe,
        super_resolution={"recipe": recipe, "noise_level": 5, "steps": 2, "then": then},
        prior={"count": 2, "steps": 2}, previews={"prompts": ["a {subject}"], "steps": 2},
        resources={"device": "cpu", "checkpoint_every": 2},
    )  # fmt: skip
    result = run_job(job)
    assert result.exit_code == 0
    store = Store(job.storage)
    record = Registry(store).find("bob")
    assert record.files == ("lora.safetensors", "super_resolution_lora.safetensors")
    assert record.super_resolution.noise_level == 5
    low = load_images(store, record.prior_digest)
    enlarged = load_images(store, record.super_resolution_prior_digest)
    assert (low.shape, enlarged.shape) == ((2, 8, 8, 3), (2, 32, 32, 3))
    annex = previews.annex(store, record.name)
    png = next(name for name in sorted(annex.names()) if name.endswith(".png"))
    assert np.asarray(Image.open(io.BytesIO(annex.file(png)))).shape == (side, side, 3)
    before = files_of(job, "bob")
    assert run_job(job).exit_code == 0
    assert files_of(job, "bob") == before
