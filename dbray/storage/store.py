"""Storage: one folder, on a local disk or at any URI that pyarrow.fs opens.

Owns the safety of paths, and the messages for failures of storage. Does not know what is stored, or
how bytes are written: see dbray.storage.folder and dbray.storage.bucket. A committed folder exists
completely or not at all; dbray.storage.committed reads it.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs as pafs

from dbray.errors import FileMissing, StoreError
from dbray.storage import local
from dbray.storage.bucket import Bucket, connect, open_object
from dbray.storage.folder import Folder
from dbray.storage.marker import COMMITTED, FileRecord, copy, digest, make_marker, mismatch

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
    failure is a StoreError that names the place and a fix. With `filesystem`, `uri` is a path
    within that pyarrow filesystem. Stores can be pickled; storage is contacted at the first use.
    """

    def __init__(self, uri: str, filesystem: pafs.FileSystem | None = None) -> None:
        self._disk = _open_disk(uri, filesystem)
        self.is_local = isinstance(self._disk, Folder)
        self.uri = self._disk.place("") if self.is_local else uri

    def __repr__(self) -> str:
        return f"Store({self._disk.place('')!r})"

    @property
    def is_missing(self) -> bool:
        """Whether it is a local folder that does not exist; remote storage is not contacted."""
        return self.is_local and not os.path.isdir(self.uri)  # noqa: PTH112 - Path.is_dir raises for odd names

    def read_bytes(self, path: str) -> bytes:
        """Read a whole file. Raises FileMissing if there is none."""
        with self._translating("read", path), self._disk.open(path) as file:
            return file.read()

    def write_bytes(self, path: str, data: bytes) -> None:
        """Write a file atomically: readers see the old file or the new one, never a part."""
        with self._translating("write", path):
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
        """Return whether a file or folder exists."""
        with self._translating("look for", path):
            return self._disk.exists(path)

    def names(self, path: str = "") -> list[str]:
        """List the entries directly under a folder, sorted, without hidden ones."""
        with self._translating("list", path):
            entries = self._disk.names(path)
        return sorted(name for name in entries if not name.startswith("."))

    def remove(self, path: str) -> None:
        """Remove a file or tree if it exists; a committed folder loses its marker first."""
        with self._translating("remove", path):
            self._disk.remove(path)

    def commit(self, folder: str, files: Mapping[str, bytes | Path]) -> None:
        """Publish files as one folder that appears completely or not at all.

        If the folder is already committed, this does nothing: a folder's name determines its files.
        An uncommitted leftover is overwritten; files that stay in it are not in the marker.
        """
        for name in files:
            _check(name)
            if COMMITTED in name.split("/"):
                raise StoreError(f"{name!r}: {COMMITTED} is the marker's name; choose another")
        with self._translating("write", folder):
            if not self._disk.exists(f"{folder}/{COMMITTED}"):
                self._disk.commit(folder, files)

    def seal(self, folder: str, names: Iterable[str]) -> None:
        """Commit a folder whose files were written one by one: digest them, then write the marker.

        Raises:
            StoreError: one of the files is missing.
        """
        records = {name: self.measure(f"{folder}/{name}") for name in names}
        there = {name: record for name, record in records.items() if record is not None}
        if absent := sorted(records.keys() - there.keys()):
            place = self._disk.place(folder)
            raise StoreError(f"{place} cannot be published: {absent[0]} is missing. Run again")
        self.write_bytes(f"{folder}/{COMMITTED}", make_marker(there))

    def is_committed(self, folder: str) -> bool:
        """Return whether a folder was published; its marker may be damaged."""
        return self.exists(f"{folder}/{COMMITTED}")

    def measure(self, path: str) -> FileRecord | None:
        """Digest and count a stored file; None if it is missing."""
        with self._translating("read", path):
            try:
                with self._disk.open(path) as file:
                    return copy(file)
            except FileNotFoundError:
                return None

    def download(self, path: str, target: Path, expected: FileRecord) -> None:
        """Copy a file to this machine. DigestMismatch, and no file, if its digest differs."""
        with self._translating("read", path), self._disk.open(path) as source:
            local.make_folders(target.parent)
            with local.replacing(target) as out:
                found = copy(source, out)
                if found != expected:
                    raise mismatch(self._disk.place(path), expected, found)

    def location(self, path: str) -> str:
        """Return a path for messages: the local path, or the URI without credentials."""
        with self._translating("find", path):
            return self._disk.place(path)

    def local_path(self, path: str) -> Path | None:
        """Return the local path, or None if the store is remote."""
        with self._translating("find", path):
            return self._disk.inside(path) if isinstance(self._disk, Folder) else None

    def arrow(self, path: str) -> tuple[pafs.FileSystem, str]:
        """Return a path in Arrow's form: a filesystem, and the path in it."""
        with self._translating("find", path):
            return self._disk.arrow(path)

    @contextmanager
    def _translating(self, action: str, path: str) -> Iterator[None]:
        """Check `path`, then translate what the block raises."""
        _check(path, may_be_root=action in ("list", "find"))
        with _translating(action, self._disk.place(path)):
            yield


def read_uri(uri: str, limit_bytes: int | None = None) -> bytes:
    """Read one file at a local path or URI; of a larger one, `limit_bytes` + 1 bytes.

    Raises:
        StoreError: it is missing, not a regular file, or cannot be read.
    """
    with _translating("read", uri):
        path = local.local_path(uri)
        with local.open_regular(path) if path is not None else open_object(*connect(uri)) as file:
            return file.read() if limit_bytes is None else file.read(limit_bytes + 1)


def digest_file(path: str | Path) -> str:
    """Return the hex SHA-256 of a local file."""
    with _translating("read", str(path)):
        return copy(Path(path)).sha256


def _open_disk(uri: str, filesystem: pafs.FileSystem | None) -> Folder | Bucket:
    """Choose the kind of storage for a path or URI; nothing is contacted yet."""
    root = local.local_path(uri) if filesystem is None else None
    return Bucket(uri, filesystem) if root is None else Folder(root)


def _check(path: str, may_be_root: bool = False) -> None:
    """Reject a path that leads out of the store or differs in meaning between kinds of storage."""
    if not path and may_be_root:
        return
    parts = path.split("/")
    bad_character = any(char == "\\" or not char.isprintable() for char in path)
    if bad_character or any(part in ("", ".", "..") for part in parts):
        raise StoreError(
            f"{path!r} is not a path in a store: it must be relative, without '..', backslashes "
            "and control characters"
        )


@contextmanager
def _translating(action: str, place: str) -> Iterator[None]:
    """Translate errors of the operating system and pyarrow into a StoreError."""
    try:
        yield
    except FileNotFoundError as exc:
        raise FileMissing(f"{exc.filename or place} does not exist") from exc
    except (OSError, pa.ArrowException) as exc:
        advice = _ADVICE.get(getattr(exc, "errno", None) or 0)
        if advice is None:
            advice = f"{exc}. Check the address, the access rights and the network"
        raise StoreError(f"cannot {action} {place}: {advice}") from exc
