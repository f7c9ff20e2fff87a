"""Commands about the jobs of a storage: status, report."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dbray.cli.output import print_table
from dbray.cli.submit import print_submissions
from dbray.errors import SpecError, without_secrets
from dbray.records.results import DAMAGED
from dbray.spec.paths import anchor
from dbray.storage.store import Store

if TYPE_CHECKING:
    from dbray.records.results import PhaseProgress, Summary


def status(args: argparse.Namespace) -> int:
    """Show the jobs of a storage: counts, rates, time left, failures by cause."""
    if args.address:
        return print_submissions(args.address)
    from dbray.records.results import summaries

    store = Store(args.storage)
    if store.is_missing:
        fix = "give the storage of a job, such as 'runs' next to its job file"
        raise SpecError.of(args.storage, "is not a folder", fix)
    while True:
        jobs = dict(summaries(store))
        if args.watch and sys.stdout.isatty():
            print("\x1b[2J\x1b[H", end="")  # a terminal shows the latest; a file keeps all
        if args.json:
            rows = {job_id: _as_json(found) for job_id, found in jobs.items()}
            print(json.dumps(rows, indent=None if args.watch else 2), flush=True)
        else:
            if jobs:
                _print_jobs(jobs)
            else:
                print(f"no jobs in {without_secrets(args.storage)}")
        at_work = (found.present_state == "running" for found in jobs.values())
        if not args.watch or not any(at_work):
            return 0
        sys.stdout.flush()
        time.sleep(2.0)


def _as_json(summary: Summary) -> dict[str, Any]:
    eta = summary.eta_seconds
    now = {"state": summary.present_state, "eta_seconds": eta and round(eta)}
    return summary.model_dump(mode="json") | now


_HEADINGS = ("job", "state", "published", "failed", "subjects/hour", "now")


def _print_jobs(jobs: dict[str, Summary]) -> None:
    """Print a table with a row per job, then the details of each."""
    print_table((_row(job_id, found) for job_id, found in jobs.items()), _HEADINGS)
    for job_id, found in jobs.items():
        for line in _details(found):
            print(f"{job_id}: {line}")


def _row(job_id: str, summary: Summary) -> tuple[str, ...]:
    found, rate = summary.counts, summary.subjects_per_hour
    done = found.get("published", 0) + found.get("kept", 0)
    return (
        job_id,
        summary.present_state,
        f"{done}/{summary.num_subjects}" if summary.num_subjects is not None else "",
        str(found.get("failed") or ""),
        "" if rate is None else f"{rate:.0f}",
        _how_far(summary.phase) if summary.phase and summary.present_state == "running" else "",
    )


def _details(summary: Summary) -> Iterator[str]:
    """Yield details that do not fit in a row: errors, lanes, failures, and a dead process."""
    if summary.error:
        yield summary.error
    if summary.present_state == DAMAGED:
        return
    for key, at in summary.in_flight.items():
        yield f"{at.lane or key}: {at.id} at step {at.step}"
    for cause in summary.failures:
        yield f"{cause.count} x {cause.kind}: {cause.example}"
    if summary.is_gone:
        yield (f"silent since {summary.updated_at}, so its process is dead; run the job again to "
               "continue it")  # fmt: skip


def _how_far(phase: PhaseProgress) -> str:
    left = phase.seconds_left
    text = f"{phase.name}: {phase.done}/{phase.total}"
    return text if left is None else f"{text}, about {left:.0f} s left"


def report(args: argparse.Namespace) -> int:
    """Rewrite the report of a job."""
    from dbray.report import build_report

    given = args.job_folder
    place, mark, options = given.partition("?") if "://" in given else (given, "", "")
    storage, _, job_id = anchor(place.rstrip("/"), Path.cwd()).rpartition("/jobs/")
    store = Store((storage or place) + mark + options)
    if not storage or not store.exists(f"jobs/{job_id}/job.json"):
        raise SpecError.of(
            args.job_folder, "is not the folder of a job", "give <storage>/jobs/<job id>"
        )
    print(store.location(build_report(store, job_id)))
    return 0
