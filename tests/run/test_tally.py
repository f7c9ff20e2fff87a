"""The tally of a run, and its treatment of invalid subjects."""

from __future__ import annotations

import json

import pytest
from kit.worlds import write_job

from dbray.errors import SpecError
from dbray.planning.checks import check_file
from dbray.planning.plan import make_plan
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
