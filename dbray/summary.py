"""How a job is doing, or how it ended, in numbers: the file summary.json.

Owns its shape. The run of a job writes it; `dbray status`, the report and the next plan read it.
Unknown keys are left alone and missing ones have defaults, for an older or a newer dbray may have
written it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict, ValidationError

from dbray.errors import StoreError
from dbray.spec import parse_utc
from dbray.store import Store

SUMMARY_FILE = "summary.json"
STALE_SECONDS = 120.0
"""A run writes far more often than this, in every phase: one that is silent for longer is gone."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Cause(_Part):
    """Failures of one kind; `subjects` names the first of them."""

    kind: str
    count: int
    example: str
    subjects: tuple[str, ...] = ()


class InFlight(_Part):
    """The subject in the hands of a lane, and the steps taken on it."""

    id: str
    step: int


class Rates(_Part):
    """Seconds per optimiser step, and per subject beside its steps; class images per second."""

    step_seconds: float
    overhead_seconds: float
    prior_images_per_second: float | None = None


class Summary(_Part):
    """What is None is not known, because the job did not come to it."""

    job_id: str = ""
    state: str = "interrupted"
    """running, finished, stopped, interrupted or broken."""
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
    lanes: int | None = None
    in_flight: dict[str, InFlight] = {}
    pending: int | None = None
    failures: tuple[Cause, ...] = ()
    retry_command: str | None = None
    base_digest: str = ""
    rates: Rates | None = None

    @property
    def is_gone(self) -> bool:
        """Whether its run says that it works, but has been silent for too long."""
        if self.state != "running":
            return False
        return not self.updated_at or time.time() - parse_utc(self.updated_at) > STALE_SECONDS

    @property
    def present_state(self) -> str:
        """The state as it is now: a run that is gone was interrupted, and could not say so."""
        return "interrupted" if self.is_gone else self.state

    @property
    def eta_seconds(self) -> float | None:
        """Seconds until all subjects have ended, by the rate so far; None where there is none."""
        if self.state != "running" or self.pending is None or not self.subjects_per_hour:
            return None
        return (self.pending + len(self.in_flight)) / self.subjects_per_hour * 3600


def read_summary(store: Store, job_id: str) -> Summary | None:
    """Read the summary of a job; None if it has none.

    Raises:
        StoreError: it is not what dbray writes.
    """
    path = f"jobs/{job_id}/{SUMMARY_FILE}"
    if not store.exists(path):
        return None
    try:
        return Summary.model_validate(store.read_json(path))
    except ValidationError as exc:
        raise StoreError(f"{path} is not what this dbray writes: {exc}") from exc


def summaries(store: Store) -> Iterator[tuple[str, Summary]]:
    """Give the id and summary of every job in a storage, by id."""
    for job_id in sorted(store.names("jobs")):
        found = read_summary(store, job_id)
        if found is not None:
            yield job_id, found
