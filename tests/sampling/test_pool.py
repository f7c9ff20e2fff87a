"""Tasks of actors, without actors: test_previews.py and test_priors.py use Ray."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from dbray.sampling.pool import SamplingActor, SamplingPool, _read_result


class Failing(SamplingActor):
    def __init__(self):
        """Do not load a base."""
        self._device = "cpu"

    def make(self, task):
        raise RuntimeError("no such thing")


def test_the_log_has_the_index_but_not_the_content_of_a_failed_task(caplog):
    task = {"photographs": ["s3://KEY:SECRET@bucket/a.png"]}
    table = Failing()(pa.table({"index": [7], "task": [json.dumps(task)]}))
    assert "task=7" in caplog.text
    assert "SECRET" not in caplog.text
    [row] = table.to_pylist()
    assert "RuntimeError: no such thing" in str(_read_result(row).error)


ON_GPU, ON_CPU = {"num_gpus": 1, "num_cpus": 0}, {"num_cpus": 2}


@pytest.mark.parametrize(
    ("device", "gpus", "held", "size"),
    [
        ("auto", 3, ON_GPU, 3),
        ("auto", 0, ON_CPU, 4),
        ("cpu", 3, ON_CPU, 4),
        ("cuda", 3, ON_GPU, 3),
        ("cuda", 0, ON_GPU, 1),  # and waits for a GPU
    ],
)
def test_actors_request_the_resources_of_their_device(monkeypatch, device, gpus, held, size):
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 16.0, "GPU": float(gpus)})
    monkeypatch.setattr("ray.available_resources", lambda: {"CPU": 8.0})
    pool = SamplingPool(threads=2, device=device)
    assert pool.remote_args() == held
    assert pool.size(num_tasks=100) == size
    assert SamplingPool(8, 2, device).size(num_tasks=100) == 8
