"""The number of slots of a job's lanes, where it was measured; a job that is continued keeps it.

Owns the format of pack.json, which the journal of a run writes.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError

from dbray.errors import FileMissing
from dbray.storage.store import Store

PACK_FILE = "pack.json"


class PackChoice(BaseModel):
    """The choice, and what it was made from."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    inputs: str
    """Digest of the base and the recipe: with others, all weights differ anyway."""
    num_slots: int
    seconds: dict[int, float] = {}
    """Seconds of a subject's step, by the number of slots."""


def read_pack(store: Store, job_id: str) -> PackChoice | None:
    """Read the choice of a job; None if none was made, or it is damaged."""
    try:
        return PackChoice.model_validate_json(store.read_bytes(f"jobs/{job_id}/{PACK_FILE}"))
    except (FileMissing, ValidationError):
        return None
