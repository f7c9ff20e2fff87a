"""The marker of a committed folder: the digest and size of every other file in it.

Owns the marker's name and format, and how bytes are digested. Does not know where it is stored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from dbray.errors import DigestMismatch
from dbray.storage.local import open_regular

COMMITTED = "_COMMITTED"

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file in a marker."""

    sha256: str
    size_bytes: int


def digest(data: bytes) -> str:
    """Return the hex SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def copy(source: bytes | Path | BinaryIO, out: BinaryIO | None = None) -> FileRecord:
    """Digest and count bytes, a local file or a stream, and write them to `out` if given."""
    if isinstance(source, Path):
        with open_regular(source) as file:
            return copy(file, out)
    sha, size_bytes = hashlib.sha256(), 0
    chunks = [source] if isinstance(source, bytes) else iter(lambda: source.read(_CHUNK_BYTES), b"")
    for chunk in chunks:
        sha.update(chunk)
        size_bytes += len(chunk)
        if out is not None:
            out.write(chunk)
    return FileRecord(sha.hexdigest(), size_bytes)


def make_marker(records: Mapping[str, FileRecord]) -> bytes:
    """Return the marker of a folder that holds these files."""
    value = {
        "files": {name: asdict(record) for name, record in sorted(records.items())},
        "committed_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return json.dumps(value, indent=1).encode()


def parse_marker(text: bytes) -> dict[str, FileRecord]:
    """Parse the output of `make_marker`. Raises ValueError for anything else."""
    try:
        return {name: FileRecord(**record) for name, record in json.loads(text)["files"].items()}
    except (KeyError, TypeError, AttributeError) as exc:
        raise ValueError(f"not a marker: {exc!r}") from exc


def mismatch(place: str, expected: FileRecord, found: FileRecord | None) -> DigestMismatch:
    """Make the error for a file that differs from its marker; `found` is None if missing."""
    if found is None:
        return DigestMismatch(f"{place} was published but is missing")
    return DigestMismatch(
        f"{place} is not what was published: it has {found.size_bytes} bytes and sha256 "
        f"{found.sha256[:12]}, not {expected.size_bytes} and {expected.sha256[:12]}"
    )
