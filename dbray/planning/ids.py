"""Whose record a job's id names in storage: no job overwrites the record of another.

A job file called job.yaml has the id of its folder; dbray once gave all of them the id 'job', and
their records are still continued.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dbray.errors import SpecError
from dbray.planning.checked import Ready
from dbray.spec.job import FIRST_DEFAULT_ID
from dbray.storage.store import Store

_UNPACKED_BY_RAY = "_ray_pkg_"


@dataclass(frozen=True)
class _Record:
    """What job.json says about where a job came from."""

    file: str | None
    subjects: frozenset[tuple[str, str]]
    """Id and class noun of each; paths of photographs differ in each submission."""

    @classmethod
    def of(cls, written: Mapping[str, Any]) -> _Record:
        subjects = written.get("subjects", ())
        return cls(
            written.get("file"), frozenset((one["id"], one["class_noun"]) for one in subjects)
        )


def origin(file: Path | None) -> str | None:
    """The path that identifies a job file; None for copies, whose path differs in each run."""
    if file is None or any(part.startswith(_UNPACKED_BY_RAY) for part in file.parts):
        return None
    return str(file)


def settle_id(ready: Ready, store: Store) -> Ready:
    """Continue the record that is this job's own. Raises SpecError if the id is another job's."""
    own = _Record(origin(ready.file), _subjects(ready))
    if ready.has_default_id and ready.job.id != FIRST_DEFAULT_ID:
        first = _read(store, FIRST_DEFAULT_ID)
        is_new = _read(store, ready.job.id) is None
        if is_new and first is not None and first.file is None and _is_own(first, own):
            return replace(ready, job=ready.job.model_copy(update={"id": FIRST_DEFAULT_ID}))
    found = _read(store, ready.job.id)
    if found is not None and not _is_own(found, own):
        raise _taken(ready, store, found)
    return ready


def _is_own(found: _Record, own: _Record) -> bool:
    """Whether a record is that of this job, as far as both are known."""
    if found.file is not None and own.file is not None:
        # A project that was moved takes its record along.
        return found.file == own.file or not Path(found.file).exists()
    return not found.subjects or not own.subjects or bool(found.subjects & own.subjects)


def _taken(ready: Ready, store: Store, found: _Record) -> SpecError:
    job_id = ready.job.id
    other = found.file or "another job, with other subjects"
    where = str(ready.file) if ready.file else "job.id"
    return SpecError.of(
        where, f"job {job_id!r} in {store.uri} is that of {other}",
        f"give this job its own id, such as 'id: {job_id}-2', or another storage",
    )  # fmt: skip


def _subjects(ready: Ready) -> frozenset[tuple[str, str]]:
    return frozenset((one.subject.id, one.subject.class_noun) for one in ready.subjects)


def _read(store: Store, job_id: str) -> _Record | None:
    path = f"jobs/{job_id}/job.json"
    if not store.exists(path):
        return None
    try:
        return _Record.of(json.loads(store.read_bytes(path)))
    except (ValueError, LookupError, TypeError, AttributeError):
        return None  # damaged, so it is nobody's, and is written anew
