"""The files of one job: job.json, results.jsonl, failed.jsonl, summary.json, metrics.jsonl.

The only writer of `<storage>/jobs/<id>/`, and the lock that keeps two runs of a job apart. What is
published is the registry's to say; the journal is for people, reports and plans.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dbray.errors import JobBusy
from dbray.leases import Outcome
from dbray.manifest import write_jsonl
from dbray.plan import Plan
from dbray.spec import Job, Subject, utc_now
from dbray.store import Store

_SHARE_OF_TIME = 0.02
"""Share of a run's time that may go into writing its journal."""
_MAX_LISTED = 20
LANES_FOLDER = "lanes"


class Journal:
    """Reads and writes the files of one job."""

    def __init__(self, store: Store, job_id: str) -> None:
        self.store, self.job_id = store, job_id
        self.folder = f"jobs/{job_id}"
        self._samples: list[dict[str, Any]] = []
        self._not_before = 0.0

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the job against other runs of it.

        Raises:
            JobBusy: another run holds it. On local storage a killed run releases it at once.
        """
        folder = self.store.local_path(self.folder)
        if folder is None:
            # Object stores have no locks; there the cluster's job name has to be unique.
            yield
            return
        self.store.write_bytes(f"{self.folder}/.keep", b"")
        with Path(folder, ".lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as exc:
                lock.seek(0)
                holder = lock.read().strip() or "another process"
                raise JobBusy(f"job {self.job_id!r} is being run by {holder}; wait for it, stop "
                              "it, or give this job another id") from exc  # fmt: skip
            lock.truncate(0)
            lock.write(f"process {os.getpid()} since {utc_now()}")
            lock.flush()
            yield

    def begin(self, plan: Plan, version: str) -> None:
        """Write job.json: what was asked for, resolved."""
        subjects = [planned.subject for planned in (*plan.to_train, *plan.kept)]
        self.store.write_json(
            f"{self.folder}/job.json",
            {
                "job": plan.job.model_copy(update={"subjects": ()}).model_dump(
                    mode="json", by_alias=True
                ),
                "started_at": utc_now(),
                "dbray_version": version,
                "base": {"name": plan.base.name, "digest": plan.base.digest},
                "subjects": [subject.model_dump(mode="json") for subject in subjects],
            },
        )

    def forget_lanes(self) -> None:
        """Remove what Ray Train keeps of lanes that have ended; nothing is read from it."""
        self.store.remove(f"{self.folder}/{LANES_FOLDER}")

    def outcomes(self) -> dict[str, Outcome]:
        """Outcomes of the last run, by subject id."""
        path = f"{self.folder}/results.jsonl"
        if not self.store.exists(path):
            return {}
        rows = [json.loads(line) for line in self.store.read_bytes(path).splitlines()]
        return {row["id"]: Outcome.from_row(row) for row in rows}

    def sample(self, measured: dict[str, Any]) -> None:
        """Add one row to metrics.jsonl; it is written with the next `update`."""
        self._samples.append({"time": utc_now(), **measured})

    def update(self, outcomes: Sequence[Outcome], summary: dict[str, Any], force: bool) -> None:
        """Write results, metrics and summary; unless forced, only when it is cheap by now."""
        started = time.monotonic()
        if not force and started < self._not_before:
            return
        self._write_lines("results.jsonl", [outcome.row() for outcome in outcomes])
        self._write_lines("metrics.jsonl", self._samples)
        self.store.write_json(f"{self.folder}/summary.json", {**summary, "updated_at": utc_now()})
        ended = time.monotonic()
        self._not_before = ended + max(1.0, (ended - started) / _SHARE_OF_TIME)

    def write_failed(self, subjects: Sequence[Subject]) -> None:
        """Write failed.jsonl, itself a valid manifest; without failures there is none."""
        path = f"{self.folder}/failed.jsonl"
        if subjects:
            lines = io.StringIO()
            write_jsonl(subjects, lines)
            self.store.write_bytes(path, lines.getvalue().encode())
        elif self.store.exists(path):
            self.store.remove(path)

    def _write_lines(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self.store.write_bytes(f"{self.folder}/{name}", text.encode())


def failures_by_cause(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Group failures by the kind of error, most frequent first."""
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.error is not None:
            groups[outcome.error.kind].append(outcome)
    ranked = sorted(groups.items(), key=lambda item: -len(item[1]))
    return [
        {
            "kind": kind,
            "count": len(failed),
            "example": failed[0].error.message if failed[0].error else "",
            "subjects": [outcome.id for outcome in failed[:_MAX_LISTED]],
        }
        for kind, failed in ranked
    ]


def counts(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """Number of subjects by status; every status is there."""
    found = Counter(outcome.status for outcome in outcomes)
    return {status: found[status] for status in ("published", "kept", "failed", "cancelled")}


def summaries(store: Store) -> dict[str, dict[str, Any]]:
    """The summary of every job in a storage, by job id."""
    found = {}
    for job_id in store.names("jobs"):
        path = f"jobs/{job_id}/summary.json"
        if store.exists(path):
            found[job_id] = store.read_json(path)
    return found


def read_job(store: Store, job_id: str) -> Job:
    """The resolved job, as job.json holds it (without its subjects)."""
    return Job.model_validate(store.read_json(f"jobs/{job_id}/job.json")["job"])
