"""Lanes train and publish families other than Stable Diffusion, with previews."""

from __future__ import annotations

import pytest
from kit.families import FAMILIES
from kit.worlds import load_job

from dbray.method.lora import FILE
from dbray.records import previews
from dbray.records.models import Registry
from dbray.run.job import run_job
from dbray.storage.store import Store

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]

LORA = {"kind": "lora", "rank": 4}


@pytest.mark.parametrize("method", ["full", LORA], ids=["full", "lora"])
@pytest.mark.parametrize("name", FAMILIES)
def test_subjects_are_trained_and_published_with_previews(ray_session, tmp_path, name, method):
    base = FAMILIES[name].build(tmp_path / "base")
    job = load_job(
        tmp_path, base, {"ace": "cat", "bob": "dog"}, recipe={"method": method, "steps": 3},
        prior={"count": 2, "steps": 2}, previews={"prompts": ["a {subject}"], "steps": 2},
        resources={"device": "cpu"},
    )  # fmt: skip
    assert run_job(job).exit_code == 0
    registry = Registry(Store(job.storage))
    record = registry.find("bob")
    denoiser = "unet" if name in ("sdxl", "deepfloyd_if") else "transformer"
    assert record.files == ((FILE,) if method is LORA else (f"{denoiser}.safetensors",))
    assert previews.annex(Store(job.storage), record.name).names()
