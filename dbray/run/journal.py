"""The files of one job: job.json, pack.json, results.jsonl, failed.jsonl, summary.json and others.

The only writer of `<storage>/jobs/<id>/`, and the lock that prevents two runs of one job at once.
The registry decides what is published; the journal is for people, reports and plans.
"""

from __future__ import annotations

import io
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TextIO

from dbray.errors import JobBusy, StoreError, without_secrets
from dbray.planning.plan import Plan
from dbray.records.packs import PACK_FILE, PackChoice
from dbray.records.results import (
    RESULTS_FILE,
    STALE_SECONDS,
    SUMMARY_FILE,
    Outcome,
    Summary,
    read_summary,
)
from dbray.spec.canon import utc_now
from dbray.spec.job import Job
from dbray.spec.subject import Subject
from dbray.storage import locks
from dbray.storage.store import Store
from dbray.subjects.validation import write_jsonl

_SHARE_OF_TIME = 0.02
"""Share of a run's time that writing its journal may take."""
_MIN_PAUSE = 1.0


class Journal:
    """Reads and writes the files of one job."""

    def __init__(self, store: Store, job_id: str) -> None:
        self.store, self.job_id = store, job_id
        self.folder = f"jobs/{job_id}"
        self._samples: list[dict[str, Any]] = []
        self._not_before = 0.0
        self._turn = threading.Lock()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep other runs of the job out while the block runs.

        Raises:
            JobBusy: another run holds the job. A killed run releases it at once where storage has
                locks, and after some time without a sign of life elsewhere, as on object stores.
            StoreError: the lock cannot be opened or written.
        """
        with ExitStack() as held:
            if not self._lock(held):
                self._refuse_beside_a_living_run()
            yield

    def _lock(self, held: ExitStack) -> bool:
        """Take the job's lock; False where the storage has no locks."""
        folder = self.store.local_path(self.folder)
        if folder is None:
            return False
        self.store.write_bytes(f"{self.folder}/.keep", b"")
        path = folder / ".lock"
        try:
            lock = held.enter_context(path.open("a+"))
            if not self._flock(lock):
                return False
            lock.truncate(0)
            lock.write(f"process {os.getpid()} since {utc_now()}")
            lock.flush()
        except OSError as exc:
            raise StoreError(
                f"cannot lock job {self.job_id!r} by {path}: {exc.strerror}. Remove that file if "
                "no run holds it, or give this job another id"
            ) from exc
        return True

    def _flock(self, lock: TextIO) -> bool:
        state = locks.lock(lock.fileno())
        if state == "taken":
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            raise JobBusy(f"job {self.job_id!r} is being run by {holder}; wait for it, stop "
                          "it, or give this job another id")  # fmt: skip
        return state == "held"

    def _refuse_beside_a_living_run(self) -> None:
        found = read_summary(self.store, self.job_id)
        if found is not None and found.present_state == "running":
            raise JobBusy(
                f"job {self.job_id!r} was at work at {found.updated_at}; if it was killed, run "
                f"again when it has been silent for {STALE_SECONDS:.0f} s"
            )

    def begin(self, plan: Plan, version: str) -> None:
        """Write job.json: the job, with every value resolved."""
        self.store.write_json(
            f"{self.folder}/job.json",
            {
                "job": _without_subjects(plan.job),
                "started_at": utc_now(),
                "dbray_version": version,
                "file": plan.file,
                "base": {"name": plan.base.name, "digest": plan.base.digest},
                "subjects": [one.subject.model_dump(mode="json") for one in plan.subjects],
            },
        )

    @property
    def lanes_folder(self) -> str:
        """The folder in which Ray Train keeps its own files of lanes."""
        return f"{self.folder}/lanes"

    def forget_lanes(self) -> None:
        """Remove Ray Train's files of lanes that have ended; nothing reads them."""
        self.store.remove(self.lanes_folder)

    @property
    def is_due(self) -> bool:
        """Whether it is time to write again; before that, callers need not gather anything."""
        return time.monotonic() >= self._not_before

    def write(self, outcomes: Sequence[Outcome], summary: Summary) -> None:
        """Write results, metrics and summary. Threads take turns."""
        with self._turn:
            started = time.monotonic()
            sample = {"time": summary.updated_at, "counts": summary.counts}
            self._samples.append(sample | {"pending": summary.pending})
            self._write_lines(RESULTS_FILE, [outcome.row() for outcome in outcomes])
            self._write_lines("metrics.jsonl", self._samples)
            self.store.write_json(f"{self.folder}/{SUMMARY_FILE}", summary.model_dump(mode="json"))
            ended = time.monotonic()
            pause = (ended - started) / _SHARE_OF_TIME
            self._not_before = ended + min(max(_MIN_PAUSE, pause), STALE_SECONDS / 4)

    def write_failed(self, subjects: Sequence[Subject]) -> None:
        """Write failed.jsonl, itself a valid manifest; without failures there is none."""
        path = f"{self.folder}/failed.jsonl"
        if subjects:
            lines = io.StringIO()
            write_jsonl(subjects, lines)
            self.store.write_bytes(path, lines.getvalue().encode())
        elif self.store.exists(path):
            self.store.remove(path)

    def write_pack(self, choice: PackChoice) -> None:
        """Write the number of slots that was chosen for the job's lanes."""
        self.store.write_json(f"{self.folder}/{PACK_FILE}", choice.model_dump(mode="json"))

    def _write_lines(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self.store.write_bytes(f"{self.folder}/{name}", text.encode())


def _without_subjects(job: Job) -> dict[str, Any]:
    """The resolved job as JSON, without its subjects, which stand beside it, and credentials."""
    shown = {"subjects": (), "storage": without_secrets(job.storage)}
    return job.model_copy(update=shown).model_dump(mode="json", by_alias=True)
