"""The state of a job: results.jsonl has a row per subject, summary.json the numbers.

Owns their format. The run of a job writes them; `dbray status`, the report, the next plan and the
next run read them. Unknown keys are ignored and missing ones have defaults, because an older or a
newer dbray may have written them. Unreadable data is logged or marked as damaged.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from dbray.errors import DbrayError
from dbray.spec.canon import parse_utc
from dbray.storage.store import Store

logger = logging.getLogger(__name__)

RESULTS_FILE = "results.jsonl"
SUMMARY_FILE = "summary.json"
DAMAGED = "damaged"
"""State of a job whose summary cannot be read."""
STALE_SECONDS = 120.0
"""A run writes its summary much more often than this, even while it waits for a cluster. A run that
was silent for longer is dead."""
_MAX_LISTED = 20

Status = Literal["published", "kept", "failed", "unfinished"]
"""published: in this run. kept: published before, under the same fingerprint. unfinished: the run
ended before the subject did."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Failure(_Part):
    """Why a subject failed: the class and the text of the error, and whether a retry may help."""

    kind: str
    message: str
    retryable: bool = False

    @classmethod
    def of(cls, error: DbrayError) -> Failure:
        """Describe an error as a failure."""
        return cls(kind=type(error).__name__, message=str(error), retryable=error.retryable)


class Outcome(_Part):
    """How one subject ended; a row of results.jsonl."""

    id: str
    class_noun: str
    status: Status
    revision: str = ""
    """The revision that is published, or that would have been published."""
    identifier: str = ""
    attempts: int = 0
    seconds: float = 0.0
    timings: dict[str, float] = {}
    steps: int = 0
    """Steps of the attempt that published it, counted from its checkpoint if there was one."""
    error: Failure | None = None

    @property
    def is_published(self) -> bool:
        """Whether it is in the registry."""
        return self.status in ("published", "kept")

    def would_repeat(self, revision: str) -> bool:
        """Whether it failed with an error that the same revision would repeat."""
        return self.error is not None and not self.error.retryable and self.revision == revision

    def row(self) -> dict[str, Any]:
        """Return the row as JSON."""
        return self.model_dump(mode="json")


class Cause(_Part):
    """Failures of one kind; `subjects` has the first few ids."""

    kind: str
    count: int
    example: str
    subjects: tuple[str, ...] = ()


class InFlight(_Part):
    """A subject that is being trained, the steps taken so far, and the lane."""

    id: str
    step: int
    lane: str = ""


class PhaseProgress(_Part):
    """Progress of the current phase: 'class images', 'training' or 'previews'."""

    name: str
    done: int
    total: int
    """Images or subjects."""
    seconds: float
    """Seconds that it has taken so far."""

    @property
    def seconds_left(self) -> float | None:
        """Estimated from the rate so far; None if nothing is done yet."""
        return (self.total - self.done) * self.seconds / self.done if self.done else None


class Rates(_Part):
    """Seconds per optimiser step, other seconds per subject, class images per second."""

    step_seconds: float
    overhead_seconds: float
    prior_images_per_second: float | None = None


class Summary(_Part):
    """A job in numbers. A field is None if the job has not measured it yet."""

    job_id: str = ""
    state: str = "interrupted"
    """running, finished, stopped, interrupted, broken or damaged."""
    error: str | None = None
    """Why a run was stopped or failed; what is wrong with a damaged summary."""
    counts: dict[str, int] = {}
    num_subjects: int | None = None
    started_at: str | None = None
    updated_at: str = ""
    wall_seconds: float | None = None
    phase_seconds: dict[str, float] = {}
    subjects_per_hour: float | None = None
    prior_images: int | None = None
    prior_images_per_second: float | None = None
    prior_sets: int | None = None
    train_steps: int | None = None
    """Of the subjects that this run published; steps before a checkpoint are not counted."""
    lanes: int | None = None
    phase: PhaseProgress | None = None
    """The phase at the time of writing."""
    in_flight: dict[str, InFlight] = {}
    """By subject id; in summaries written before lanes trained several at once, by lane."""
    pending: int | None = None
    failures: tuple[Cause, ...] = ()
    retry_command: str | None = None
    base_digest: str = ""
    rates: Rates | None = None

    @property
    def is_gone(self) -> bool:
        """Whether the run is marked as running, but has been silent for too long."""
        if self.state != "running":
            return False
        try:
            return time.time() - parse_utc(self.updated_at) > STALE_SECONDS
        except ValueError:
            return True

    @property
    def present_state(self) -> str:
        """The present state: a dead run was interrupted, but could not write that."""
        return "interrupted" if self.is_gone else self.state

    @property
    def eta_seconds(self) -> float | None:
        """Seconds until all subjects have ended; None while the rate of training is unknown."""
        if self.state != "running" or self.phase is None or self.phase.name != "training":
            return None
        return self.phase.seconds_left


def counts(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """Count subjects by status; every status is a key."""
    found = Counter(outcome.status for outcome in outcomes)
    return {status: found[status] for status in get_args(Status)}


def causes(outcomes: Iterable[Outcome]) -> tuple[Cause, ...]:
    """Group failures by the kind of error, most frequent first."""
    groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.error is not None:
            groups[outcome.error.kind].append((outcome.id, outcome.error.message))
    return tuple(
        Cause(
            kind=kind,
            count=len(failed),
            example=failed[0][1],
            subjects=tuple(subject_id for subject_id, _ in failed[:_MAX_LISTED]),
        )
        for kind, failed in sorted(groups.items(), key=lambda group: -len(group[1]))
    )


def read_outcomes(store: Store, job_id: str) -> dict[str, Outcome]:
    """Read the last row of every subject. An unreadable line is skipped and logged."""
    path = f"jobs/{job_id}/{RESULTS_FILE}"
    if not store.exists(path):
        return {}
    outcomes: dict[str, Outcome] = {}
    for number, line in enumerate(store.read_bytes(path).splitlines(), start=1):
        try:
            outcome = Outcome.model_validate_json(line)
        except ValidationError:
            logger.warning("result unreadable file=%s line=%d", store.location(path), number)
            continue
        outcomes[outcome.id] = outcome
    return outcomes


def read_summary(store: Store, job_id: str) -> Summary | None:
    """Read the summary of a job; None if it has none. A damaged one has the state DAMAGED."""
    path = f"jobs/{job_id}/{SUMMARY_FILE}"
    if not store.exists(path):
        return None
    try:
        return Summary.model_validate_json(store.read_bytes(path))
    except ValidationError as exc:
        [first, *_] = exc.errors(include_url=False)
        error = (f"{store.location(path)} is not a valid summary ({first['msg']}); run the job "
                 "again, which rewrites it, or remove the file")  # fmt: skip
        logger.warning("summary unreadable error=%s", error)
        return Summary(job_id=job_id, state=DAMAGED, error=error)


def summaries(store: Store) -> Iterator[tuple[str, Summary]]:
    """Yield the id and summary of every job in a storage, by id, including damaged ones."""
    for job_id in sorted(store.names("jobs")):
        found = read_summary(store, job_id)
        if found is not None:
            yield job_id, found
