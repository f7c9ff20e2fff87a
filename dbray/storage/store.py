"""Storage: one folder, on a local disk or at any URI that pyarrow.fs knows.

Owns commits (a folder that exists completely or not at all), digests, the safety of paths, and the
words in which failures of storage are told. Knows neither what is stored nor how bytes come to
rest: that is dbray.storage.disks.

A committed folder holds `_COMMITTED`, written last: the digest and size of every other file. What
has no marker does not exist.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs as pafs

from dbray.errors import DigestMismatch, StoreError
from dbray.storage import disks
from dbray.storage.disks import COMMITTED, FileRecord

__all__ = ["COMMITTED", "FileRecord", "Store", "digest", "digest_file", "read_uri"]

_ADVICE = {
    errno.ENOSPC: "no space is left. Free some and run again; nothing published is lost",
    errno.EDQUOT: "the disk quota is used up. Free some and run again; nothing published is lost",
    errno.EFBIG: "the file is larger than this storage or process may write. Lift the limit and "
    "run again; nothing published is lost",
    errno.EACCES: "permission denied. Give this user access, or choose another storage",
    errno.EPERM: "permission denied. Give this user access, or choose another storage",
    errno.EROFS: "it is mounted read-only. Mount it for writing, or choose another storage",
    errno.ENOTDIR: "a file stands where a folder is needed. Move it, or choose another storage",
    errno.EEXIST: "a file stands where a folder is needed. Move it, or choose another storage",
    errno.EISDIR: "it is a folder, not a file. Check the path",
    errno.ENAMETOOLONG: "the name is too long. Choose a shorter one",
    errno.ELOOP: "its symbolic links run in a circle. Check the path",
}


class Store:
    """A folder of results at a local path or URI.

    All paths below are relative to it, '/'-separated, and checked: none leads out of it. Every
    failure is a StoreError that names the place and says what to do. With `filesystem`, `uri` is a
    path within that pyarrow filesystem. Stores can be pickled; nothing is contacted before use.
    """

    def __init__(self, uri: str, filesystem: pafs.FileSystem | None = None) -> None:
        self._disk = disks.open_disk(uri, filesystem)
        self.is_local = isinstance(self._disk, disks.Folder)
        self.uri = self._disk.place("") if self.is_local else uri

    def __repr__(self) -> str:
        return f"Store({self._disk.place('')!r})"

    @property
    def is_missing(self) -> bool:
        """Whether it is a folder on this machine that is not there; remote ones are not asked."""
        return self.is_local and not os.path.isdir(self.uri)  # noqa: PTH112 - Path.is_dir raises for odd names

    def read_bytes(self, path: str) -> bytes:
        """Read a whole file."""
        with self._telling("read", path), self._disk.open(path) as file:
            return file.read()

    def write_bytes(self, path: str, data: bytes) -> None:
        """Write a file atomically: readers see the old one or the new one, never a part."""
        with self._telling("write", path):
            self._disk.write(path, data)

    def read_json(self, path: str) -> Any:
        """Read a JSON file."""
        try:
            return json.loads(self.read_bytes(path))
        except ValueError as exc:
            raise StoreError(f"{self._disk.place(path)} is not valid JSON: {exc}") from exc

    def write_json(self, path: str, value: Any) -> None:
        """Write a JSON file atomically."""
        self.write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())

    def exists(self, path: str) -> bool:
        """Say whether a file or folder is there."""
        with self._telling("look for", path):
            return self._disk.exists(path)

    def names(self, path: str = "") -> list[str]:
        """List the entries directly under a folder, sorted; hidden ones are left out."""
        with self._telling("list", path):
            entries = self._disk.names(path)
        return sorted(name for name in entries if not name.startswith("."))

    def remove(self, path: str) -> None:
        """Remove a file or tree; missing is fine. A committed folder loses its marker first."""
        with self._telling("remove", path):
            self._disk.remove(path)

    def commit(self, folder: str, files: Mapping[str, bytes | Path]) -> None:
        """Publish files as one folder that appears completely or not at all.

        If the folder is committed already, nothing happens: a folder's name says what is in it. An
        uncommitted leftover is written over; a file of it that stays is not in the marker.
        """
        for name in files:
            _check(name)
            if COMMITTED in name.split("/"):
                raise StoreError(f"{name!r}: {COMMITTED} is the marker's name; choose another")
        with self._telling("write", folder):
            if not self._disk.exists(f"{folder}/{COMMITTED}"):
                self._disk.commit(folder, files)

    def seal(self, folder: str, names: Iterable[str]) -> None:
        """Commit a folder whose files were written one by one: digest them, then the marker.

        Raises:
            StoreError: one of the files is not there.
        """
        records = {name: self._measure(f"{folder}/{name}") for name in names}
        there = {name: record for name, record in records.items() if record is not None}
        if absent := sorted(records.keys() - there.keys()):
            place = self._disk.place(folder)
            raise StoreError(f"{place} cannot be published: {absent[0]} is missing. Run again")
        self.write_bytes(f"{folder}/{COMMITTED}", disks.marker_of(there))

    def is_committed(self, folder: str) -> bool:
        """Say whether a folder was published."""
        return self.exists(f"{folder}/{COMMITTED}")

    def committed(self, folder: str) -> dict[str, FileRecord]:
        """Return the record of every file of a committed folder.

        Raises:
            DigestMismatch: the marker is damaged, which is no passing failure of storage.
        """
        text = self.read_bytes(f"{folder}/{COMMITTED}")
        try:
            return disks.parse_marker(text)
        except ValueError as exc:
            place = self._disk.place(f"{folder}/{COMMITTED}")
            raise DigestMismatch(f"{place} is no marker: {exc!r}") from exc

    def read_committed(self, folder: str, name: str) -> bytes:
        """Read a file of a committed folder. Raises DigestMismatch if it was changed."""
        [(_, path, record)] = self._records(folder, [name])
        return self.read_recorded(path, record)

    def read_recorded(self, path: str, record: FileRecord) -> bytes:
        """Read a file that a marker tells of. Raises DigestMismatch if it was changed."""
        if not self.exists(path):
            raise self._mismatch(path, record, None)
        data = self.read_bytes(path)
        found = disks.copy(data)
        if found != record:
            raise self._mismatch(path, record, found)
        return data

    def verify(self, folder: str) -> list[str]:
        """Name the files of a committed folder that are missing or not what was written."""
        records = self.committed(folder)
        return [n for n in sorted(records) if self._measure(f"{folder}/{n}") != records[n]]

    def fetch(self, folder: str, names: Iterable[str], destination: Path) -> dict[str, Path]:
        """Bring verified files of a committed folder onto this machine.

        A local store gives the paths in place and copies nothing. Otherwise files land in
        `destination`; those that are there already and match are kept.

        Raises:
            DigestMismatch: a file is not what was written.
        """
        paths = {}
        for name, path, record in self._records(folder, names):
            local = self.local_path(path)
            if local is not None:
                found = self._measure(path)
                if found != record:
                    raise self._mismatch(path, record, found)
            else:
                local = destination / name
                if not local.is_file() or digest_file(local) != record.sha256:
                    self._download(path, record, local)
            paths[name] = local
        return paths

    def location(self, path: str) -> str:
        """Say where a path lies, for people: its local path, or its URI without credentials."""
        with self._telling("find", path):
            return self._disk.place(path)

    def local_path(self, path: str) -> Path | None:
        """Return where a path lies on this machine, or None if the store is remote."""
        with self._telling("find", path):
            return self._disk.inside(path) if isinstance(self._disk, disks.Folder) else None

    def arrow(self, path: str) -> tuple[pafs.FileSystem, str]:
        """Return a path as Arrow takes it: a filesystem, and the path within."""
        with self._telling("find", path):
            return self._disk.arrow(path)

    def _records(self, folder: str, names: Iterable[str]) -> list[tuple[str, str, FileRecord]]:
        """Name, path and record of some files of a committed folder; reads the marker once."""
        records = self.committed(folder)
        wanted = list(names)
        for name in wanted:
            if name not in records:
                raise StoreError(f"{self._disk.place(folder)} was published without {name!r}")
        return [(name, f"{folder}/{name}", records[name]) for name in wanted]

    def _measure(self, path: str) -> FileRecord | None:
        """Digest a stored file; None if it is missing."""
        with self._telling("read", path):
            try:
                with self._disk.open(path) as file:
                    return disks.copy(file)
            except FileNotFoundError:
                return None

    def _mismatch(
        self, path: str, expected: FileRecord, found: FileRecord | None
    ) -> DigestMismatch:
        place = self._disk.place(path)
        if found is None:
            return DigestMismatch(f"{place} was published but is missing")
        return DigestMismatch(
            f"{place} is not what was published: it has {found.size_bytes} bytes and sha256 "
            f"{found.sha256[:12]}, not {expected.size_bytes} and {expected.sha256[:12]}"
        )

    def _download(self, path: str, record: FileRecord, local: Path) -> None:
        with self._telling("read", path), self._disk.open(path) as source:
            disks.make_folders(local.parent)
            with disks.replacing(local) as out:
                found = disks.copy(source, out)
                if found != record:
                    raise self._mismatch(path, record, found)

    @contextmanager
    def _telling(self, action: str, path: str) -> Iterator[None]:
        """Check `path`, then translate what goes wrong in the block."""
        _check(path, may_be_root=action in ("list", "find"))
        with _telling(action, self._disk.place(path)):
            yield


def read_uri(uri: str, limit_bytes: int | None = None) -> bytes:
    """Read one file at a local path or URI; of a larger one, `limit_bytes` + 1 bytes.

    Raises:
        StoreError: it is missing, no regular file, or cannot be read.
    """
    with _telling("read", uri):
        local = disks.local_path(uri)
        if local is not None:
            file = disks.open_regular(local)
        else:
            file = disks.open_object(*disks.connect(uri))
        with file:
            return file.read() if limit_bytes is None else file.read(limit_bytes + 1)


def digest(data: bytes) -> str:
    """Hex SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def digest_file(path: str | Path) -> str:
    """Hex SHA-256 of a local file."""
    with _telling("read", str(path)), disks.open_regular(Path(path)) as file:
        return disks.copy(file).sha256


def _check(path: str, may_be_root: bool = False) -> None:
    """Refuse what could lead out of the store, or mean different things on different storage."""
    if not path and may_be_root:
        return
    parts = path.split("/")
    bad_character = any(char == "\\" or not char.isprintable() for char in path)
    if bad_character or any(part in ("", ".", "..") for part in parts):
        raise StoreError(
            f"{path!r} is no path in a store: it must be relative, without '..', backslashes and "
            "control characters"
        )


@contextmanager
def _telling(action: str, place: str) -> Iterator[None]:
    """Translate what the operating system and pyarrow raise, once, into a StoreError."""
    try:
        yield
    except FileNotFoundError as exc:
        raise StoreError(f"{exc.filename or place} does not exist") from exc
    except (OSError, pa.ArrowException) as exc:
        advice = _ADVICE.get(getattr(exc, "errno", None) or 0)
        if advice is None:
            advice = f"{exc}. Check the address, the access rights and the network"
        raise StoreError(f"cannot {action} {place}: {advice}") from exc
