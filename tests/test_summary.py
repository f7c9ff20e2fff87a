"""The summary of a job: what is told of a run that lives, and of one that is gone."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from dbray.errors import StoreError
from dbray.store import Store
from dbray.summary import STALE_SECONDS, InFlight, Summary, read_summary, summaries


def ago(seconds):
    moment = datetime.fromtimestamp(time.time() - seconds, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.mark.parametrize(
    ("state", "seconds", "is_gone"),
    [
        ("running", 1, False),
        ("running", STALE_SECONDS + 5, True),
        ("finished", STALE_SECONDS + 5, False),
    ],
)
def test_a_run_that_is_silent_is_gone(state, seconds, is_gone):
    assert Summary(state=state, updated_at=ago(seconds)).is_gone is is_gone


def test_the_time_left_follows_from_the_rate():
    at_work = {"lane-0": InFlight(id="rex", step=3)}
    running = Summary(state="running", pending=9, in_flight=at_work, subjects_per_hour=100.0)
    assert running.eta_seconds == pytest.approx(360.0)
    assert running.model_copy(update={"subjects_per_hour": 0.0}).eta_seconds is None
    assert running.model_copy(update={"state": "finished"}).eta_seconds is None


def test_summaries_are_read_back_and_tolerate_other_versions(tmp_path):
    store = Store(str(tmp_path))
    written = Summary(job_id="b", state="finished", counts={"published": 2})
    store.write_json("jobs/b/summary.json", written.model_dump(mode="json"))
    store.write_json("jobs/a/summary.json", {"state": "running", "of a later version": 1})
    store.write_bytes("jobs/c/job.json", b"{}")
    assert [job_id for job_id, _ in summaries(store)] == ["a", "b"]
    assert read_summary(store, "b") == written
    assert read_summary(store, "c") is None
    store.write_json("jobs/c/summary.json", {"counts": "many"})
    with pytest.raises(StoreError, match="jobs/c"):
        read_summary(store, "c")
