"""Publishing by a lane: the record describes the files."""

from __future__ import annotations

import torch
from kit.worlds import load_job

from dbray.lanes.beat import Clock
from dbray.lanes.publish import Publisher
from dbray.method import delta
from dbray.planning.checks import check_job
from dbray.planning.plan import make_plan
from dbray.records.models import Registry
from dbray.storage.store import Store
from dbray.training.loop import Progress


def test_the_record_of_a_delta_has_its_error(tiny_base, tmp_path):
    method = {"kind": "full", "publish": {"kind": "delta", "rank": 1}}
    job = load_job(tmp_path, tiny_base, {"ace": "cat"}, recipe={"method": method})
    store = Store(job.storage)
    plan = make_plan(check_job(job).ready(), store)
    network = torch.nn.ModuleDict({"unet": torch.nn.Linear(4, 4, bias=False)})
    # Singular values 4 and 3, of which the first is kept.
    weights = {"unet.weight": torch.diag(torch.tensor([4.0, 3.0, 0.0, 0.0]))}
    base = {"unet.weight": torch.zeros(4, 4)}
    files = delta.publish(network, base, weights, rank=1, dtype=torch.float32)
    Publisher(plan.job, plan.base).publish(plan.to_train[0], [(files, Progress())], Clock())
    record = Registry(store).find("ace")
    assert record.metadata == {"relative_error": "0.6"}
    assert record.files == tuple(files)
