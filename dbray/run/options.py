"""Options of a run that are not part of the job."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RunOptions:
    """Options of a run that are not part of the job."""

    retry_failed: bool = False
    """Also retry subjects whose error would repeat."""
    max_failures: int | None = None
    """Stop when more subjects than this have failed."""
    address: str | None = None
    """Ray cluster to use; None starts one for this process."""
    command: str | None = None
    """Shell command that runs this job, for the hints in the report; None if run from Python."""
    skip_invalid: bool = False
    """Train the valid subjects; list the others in failed.jsonl."""
    score: bool = True
    """Score what is published, where the job names an embedder."""
