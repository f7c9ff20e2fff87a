"""Tasks of actors, without the actors: tests/test_previews.py and tests/test_priors.py have Ray."""

from __future__ import annotations

import json

import pyarrow as pa

from dbray.sampling import SamplingActor, _read_result


class Failing(SamplingActor):
    def __init__(self):
        """Needs no backbone."""
        self._device = "cpu"

    def make(self, task):
        raise RuntimeError("no such thing")


def test_the_log_tells_which_task_failed_and_not_what_is_in_it(caplog):
    task = {"photographs": ["s3://KEY:SECRET@bucket/a.png"]}
    table = Failing()(pa.table({"index": [7], "task": [json.dumps(task)]}))
    assert "task=7" in caplog.text
    assert "SECRET" not in caplog.text
    [row] = table.to_pylist()
    assert "RuntimeError: no such thing" in str(_read_result(row).error)
