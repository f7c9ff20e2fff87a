"""The journal of a job: which run may write it, and the order of its subjects."""

from __future__ import annotations

import errno
import fcntl

import pytest

from dbray.errors import JobBusy, StoreError
from dbray.run.journal import Journal
from dbray.spec.canon import utc_now
from dbray.storage.store import Store


@pytest.fixture
def journal(tmp_path):
    return Journal(Store(str(tmp_path / "runs")), "job")


def test_one_run_at_a_time_holds_a_job(journal):
    with journal.hold(), pytest.raises(JobBusy, match="being run by process"), journal.hold():
        pass
    with journal.hold():
        pass


def test_storage_without_locks_is_treated_as_an_object_store(journal, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with journal.hold():
        pass
    journal.store.write_json("jobs/job/summary.json", {"state": "running", "updated_at": utc_now()})
    with pytest.raises(JobBusy, match="was at work"), journal.hold():
        pass


def test_a_lock_that_cannot_be_opened_is_reported(journal):
    journal.store.write_bytes("jobs/job/.lock/file", b"")
    with pytest.raises(StoreError, match=r"jobs/job/\.lock.*Is a directory"), journal.hold():
        pass
