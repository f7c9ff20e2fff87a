"""The tally of a run, and its treatment of invalid subjects."""

from __future__ import annotations

import json

import pytest
from kit.records import publish, record_of
from kit.scores import GOOD, scores
from kit.worlds import write_job

from dbray.errors import SpecError
from dbray.planning.checks import check_file
from dbray.planning.plan import make_plan
from dbray.records import scores as layout
from dbray.records.annexes import Annex
from dbray.records.results import Outcome
from dbray.run.job import _end
from dbray.run.journal import Journal
from dbray.run.recorder import Recorder
from dbray.run.tally import Tally
from dbray.run.watch import Silence
from dbray.storage.store import Store


@pytest.fixture
def checked(tmp_path, tiny_base):
    file = write_job(tmp_path, tiny_base, {"rex": "dog", "tom": "cat"})
    (tmp_path / "photos" / "tom" / "0.png").write_text("not an image")
    return check_file(file)


def test_an_invalid_subject_stops_a_job_unless_it_is_skipped(checked):
    with pytest.raises(SpecError, match=r"0\.png"):
        checked.ready()
    ready = checked.ready(skip_invalid=True)
    assert [one.subject.id for one in ready.subjects] == ["rex"]
    [tom] = ready.invalid
    assert (tom.id, tom.subject.class_noun) == ("tom", "cat")
    assert "0.png" in tom.reason


def test_skipped_subjects_fail_and_are_listed(checked):
    ready = checked.ready(skip_invalid=True)
    store = Store(ready.job.storage)
    plan = make_plan(ready, store)
    recorder = Recorder(Tally(plan, ""), Journal(store, "pets"), Silence())
    recorder.tally.mark_unfinished()
    summary = recorder.write("finished")
    assert summary.num_subjects == 2
    assert summary.counts == {"published": 0, "kept": 0, "failed": 1, "unfinished": 1}
    assert summary.failures[0].kind == "SubjectError"
    lines = store.read_bytes("jobs/pets/failed.jsonl").splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["tom"]


def test_the_rates_of_a_run_count_only_the_steps_that_it_took(tmp_path, tiny_base):
    ready = check_file(write_job(tmp_path, tiny_base, {"rex": "dog"})).ready()
    tally = Tally(make_plan(ready, Store(ready.job.storage)), "")
    timings = {"encode": 3.0, "train": 0.5}  # continued from a checkpoint: 2 of 8 steps
    tally.add(Outcome(id="rex", class_noun="dog", status="published", steps=2, timings=timings))
    summary = tally.summary("finished")
    assert summary.train_steps == 2
    assert (summary.rates.step_seconds, summary.rates.overhead_seconds) == (0.25, 3.0)


def test_the_scores_of_each_model_are_read_once_at_the_end_of_a_run(
    tmp_path, tiny_base, monkeypatch
):
    ready = check_file(write_job(tmp_path, tiny_base, {"rex": "dog", "tom": "cat"})).ready()
    store = Store(ready.job.storage)
    plan = make_plan(ready, store)
    recorder = Recorder(Tally(plan, ""), Journal(store, plan.job.id), Silence())
    recorder.journal.begin(plan, "0")
    for planned, found in zip(plan.subjects, (GOOD, scores(copies=0.9)), strict=True):
        record = publish(store.uri, record_of(plan, planned))
        layout.annex(store, record.name).publish(layout.files_of(found, {}))
        outcome = Outcome(id=record.id, class_noun=record.class_noun, status="published",
                          revision=record.revision)  # fmt: skip
        recorder.tally.add(outcome)
    read, reads = Annex.file, []
    monkeypatch.setattr(Annex, "file", lambda *args: reads.append(args[1]) or read(*args))
    result = _end(recorder, "finished")
    assert [one.model.partition("@")[0] for one in result.flagged] == ["tom"]
    assert reads.count(layout.FIGURES) == 2


def test_skip_invalid_needs_at_least_one_valid_subject(tmp_path, tiny_base):
    file = write_job(tmp_path, tiny_base, {"tom": "cat"})
    (tmp_path / "photos" / "tom" / "0.png").write_text("not an image")
    with pytest.raises(SpecError):
        check_file(file).ready(skip_invalid=True)


@pytest.mark.parametrize("line", ["stepz: 1", "base: /nowhere/at/all"])
def test_only_mistakes_in_subjects_are_skipped(tmp_path, tiny_base, line):
    file = write_job(tmp_path, tiny_base, {"rex": "dog"})
    kept = [one for one in file.read_text().splitlines() if not one.startswith(line.split(":")[0])]
    file.write_text("\n".join([*kept, line]))
    with pytest.raises(SpecError):
        check_file(file).ready(skip_invalid=True)
