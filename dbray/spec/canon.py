"""The canonical text form of ids, times and digests.

Everything that becomes a file name, a line of a record or part of a fingerprint is written here.
"""

from __future__ import annotations

import hashlib
import json
import re
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import Field

SUBJECT_ID_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"
UNTOUCHED = "base"
"""The name of the untouched base in place of a model's id. Hence no subject may have this id."""

SubjectId = Annotated[str, Field(pattern=SUBJECT_ID_PATTERN)]


def slug(text: str) -> str:
    """Turn a text into an id: lower case, other characters become '-'; "" if none is left."""
    kept = "".join(char if (char.isascii() and char.isalnum()) or char in "._-" else "-"
                   for char in text.lower())  # fmt: skip
    return kept.strip("._-")[:63]


def is_commit(revision: str) -> bool:
    """Return whether this is a full commit hash, which always gives the same files."""
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def utc_now() -> str:
    """Return the present time in the form of all dbray files: ISO 8601, UTC, in seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_utc(text: str) -> float:
    """Parse the output of `utc_now`. Returns seconds since the epoch."""
    return datetime.fromisoformat(text).timestamp()


def digest_json(value: Any) -> str:
    """Return the hex SHA-256 of the canonical JSON (sorted keys, no spaces) of a value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
