"""Other families than Stable Diffusion go the whole way: trained in lanes, published, previewed."""

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


def test_an_adapter_of_flux_is_trained_and_published_with_previews(ray_session, tmp_path):
    base = FAMILIES["flux"].build(tmp_path / "base")
    recipe = {"method": {"kind": "lora", "rank": 4}, "steps": 3}
    job = load_job(
        tmp_path, base, {"ace": "cat", "bob": "dog"}, recipe=recipe,
        prior={"count": 2, "steps": 2}, previews={"prompts": ["a {subject}"], "steps": 2},
        resources={"device": "cpu"},
    )  # fmt: skip
    assert run_job(job).exit_code == 0
    registry = Registry(Store(job.storage))
    record = registry.find("bob")
    assert record.files == (FILE,)
    assert previews.annex(Store(job.storage), record.name).names()
