"""What a lane reads of a subject: its photographs as the recipe cuts them."""

from __future__ import annotations

from pathlib import Path

from kit.worlds import load_job
from PIL import Image

from dbray import bases
from dbray.lanes.beat import Beat
from dbray.lanes.material import Material
from dbray.planning.checks import check_job
from dbray.planning.plan import make_plan
from dbray.storage.store import Store


def test_photographs_keep_their_aspect_in_buckets(tiny_base, tmp_path):
    job = load_job(tmp_path, tiny_base, {"ace": "cat"}, recipe={"crop": "bucket",
                   "prior_weight": 0, "resolution": 64})  # fmt: skip
    photograph = Path(str(job.subjects)) / "ace" / "0.png"
    with Image.open(photograph) as square:
        square.resize((96, 64)).save(photograph)
    plan = make_plan(check_job(job).ready(), Store(job.storage))
    backbone = bases.load(plan.base, bases.Compute(resolution=64))
    beat = Beat(None, "lane", leads=False)
    data = Material(plan.job, backbone).of(plan.to_train[0], beat)
    # Pixels are cut to 80 x 48 and 64 x 64, of which the autoencoder makes a quarter.
    assert [tuple(mean.shape) for mean in data.views.mean_VCHW] == [
        (4, 12, 20), (4, 16, 16), (4, 16, 16),
    ]  # fmt: skip
