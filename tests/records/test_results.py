"""The summary of a job: its state while a run is alive, and after the run has died."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from dbray.records.results import (
    DAMAGED,
    STALE_SECONDS,
    Failure,
    Outcome,
    PhaseProgress,
    Summary,
    causes,
    counts,
    read_outcomes,
    read_summary,
    summaries,
)
from dbray.storage.store import Store


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
def test_a_silent_run_is_dead(state, seconds, is_gone):
    assert Summary(state=state, updated_at=ago(seconds)).is_gone is is_gone


@pytest.mark.parametrize("moment", ["", "yesterday", "12:00"])
def test_a_running_summary_without_a_valid_time_is_dead(moment):
    assert Summary(state="running", updated_at=moment).present_state == "interrupted"


def test_the_remaining_time_is_computed_from_the_rate():
    training = PhaseProgress(name="training", done=5, total=20, seconds=100.0)
    running = Summary(state="running", phase=training)
    assert running.eta_seconds == pytest.approx(300.0)
    assert running.model_copy(update={"state": "finished"}).eta_seconds is None
    just_begun = training.model_copy(update={"done": 0})
    assert running.model_copy(update={"phase": just_begun}).eta_seconds is None


def test_class_images_give_no_remaining_time_of_subjects():
    images = PhaseProgress(name="class images", done=30, total=120, seconds=10.0)
    assert images.seconds_left == pytest.approx(30.0)
    assert Summary(state="running", phase=images).eta_seconds is None


def test_summaries_are_read_back_and_tolerate_other_versions(tmp_path):
    store = Store(str(tmp_path))
    written = Summary(job_id="b", state="finished", counts={"published": 2})
    store.write_json("jobs/b/summary.json", written.model_dump(mode="json"))
    store.write_json("jobs/a/summary.json", {"state": "running", "of a later version": 1})
    store.write_bytes("jobs/c/job.json", b"{}")
    assert [job_id for job_id, _ in summaries(store)] == ["a", "b"]
    assert read_summary(store, "b") == written
    assert read_summary(store, "c") is None


@pytest.mark.parametrize("content", [b'{"counts": "many"}', b'{"state": "fini', b"[]", b"\xff"])
def test_a_damaged_summary_is_reported_and_others_are_read(tmp_path, content):
    store = Store(str(tmp_path))
    store.write_json("jobs/a/summary.json", {"state": "finished"})
    store.write_bytes("jobs/b/summary.json", content)
    found = dict(summaries(store))
    assert found["a"].present_state == "finished"
    assert found["b"].present_state == DAMAGED
    assert str(tmp_path / "jobs" / "b" / "summary.json") in found["b"].error
    assert "run the job again" in found["b"].error


def test_results_are_read_without_a_truncated_line(tmp_path):
    store = Store(str(tmp_path))
    failed = Outcome(
        id="a", class_noun="dog", status="failed", error=Failure(kind="Diverged", message="nan")
    )
    published = failed.model_copy(update={"status": "published", "error": None})
    lines = [failed, failed.model_copy(update={"id": "b"}), published]
    text = "".join(f"{one.model_dump_json()}\n" for one in lines) + '{"id": "c'
    store.write_bytes("jobs/x/results.jsonl", text.encode())
    found = read_outcomes(store, "x")
    assert {name: one.status for name, one in found.items()} == {"a": "published", "b": "failed"}
    assert read_outcomes(store, "y") == {}


def test_failures_are_counted_by_cause_most_frequent_first():
    def failed(number, kind):
        error = Failure(kind=kind, message=f"{kind} {number}")
        return Outcome(id=f"{kind}-{number}", class_noun="dog", status="failed", error=error)

    outcomes = [failed(0, "Rare"), *(failed(number, "Often") for number in range(30))]
    often, rare = causes(outcomes)
    assert (often.kind, often.count, often.example) == ("Often", 30, "Often 0")
    assert often.subjects == tuple(f"Often-{number}" for number in range(20))
    assert (rare.kind, rare.count, rare.subjects) == ("Rare", 1, ("Rare-0",))
    assert counts(outcomes) == {"published": 0, "kept": 0, "failed": 31, "unfinished": 0}
