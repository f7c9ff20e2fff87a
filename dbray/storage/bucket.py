"""Storage in an object store, or anything else that pyarrow.fs opens.

Owns commits without renames: single puts are atomic, so the marker is put last. Has the same
methods as dbray.storage.folder. Does not check paths or translate errors: dbray.storage.store does.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from pyarrow import fs as pafs

from dbray.errors import StoreError, without_secrets
from dbray.storage.marker import COMMITTED, FileRecord, copy, make_marker, parse_marker

_REQUEST_BYTES = 8 << 20
_MAX_TRIES = 8


class Bucket:
    """An object store: single puts are atomic and renames do not exist."""

    def __init__(self, uri: str, filesystem: pafs.FileSystem | None) -> None:
        self._uri = uri
        self._given = filesystem

    def arrow(self, path: str) -> tuple[pafs.FileSystem, str]:
        """Return the filesystem and the key in it."""
        filesystem, root = (self._given, self._uri) if self._given else connect(self._uri)
        return filesystem, _join(root, path)

    def place(self, path: str) -> str:
        """Return a path for messages, without credentials and options."""
        return _join(without_secrets(self._uri).partition("?")[0], path)

    def open(self, path: str) -> BinaryIO:
        """Open an object for reading."""
        filesystem, key = self.arrow(path)
        return open_object(filesystem, key)

    def write(self, path: str, source: bytes | Path) -> FileRecord:
        """Put an object."""
        filesystem, key = self.arrow(path)
        try:
            out = filesystem.open_output_stream(key)
        except FileNotFoundError:  # a filesystem with real folders
            filesystem.create_dir(key.rpartition("/")[0], recursive=True)
            out = filesystem.open_output_stream(key)
        with out:
            return copy(source, out)  # pyright: ignore[reportArgumentType]

    def exists(self, path: str) -> bool:
        """Return whether an object, or any object below it, exists."""
        filesystem, key = self.arrow(path)
        return filesystem.get_file_info(key).type != pafs.FileType.NotFound

    def names(self, path: str) -> list[str]:
        """List the entries directly under a prefix."""
        filesystem, key = self.arrow(path)
        infos = filesystem.get_file_info(pafs.FileSelector(key, allow_not_found=True))
        return [info.base_name for info in infos]

    def remove(self, path: str) -> None:
        """Remove an object, or all objects below a prefix, the marker first."""
        filesystem, key = self.arrow(path)
        kind = filesystem.get_file_info(key).type
        if kind == pafs.FileType.File:
            filesystem.delete_file(key)
        elif kind == pafs.FileType.Directory:
            with suppress(FileNotFoundError):
                filesystem.delete_file(_join(key, COMMITTED))
            filesystem.delete_dir(key)

    def commit(self, folder: str, files: Mapping[str, bytes | Path]) -> None:
        """Write the files, then the marker, and read them back; repeat if a rival wrote meanwhile.

        Leftovers of an interrupted commit are overwritten and never deleted: they may belong to a
        writer that is still running. Every writer reads back after its last write, so the last
        writer verifies the final state. Rivals wait for random times, or they could repeat forever.
        """
        for attempt in range(_MAX_TRIES):
            records = {name: self.write(f"{folder}/{name}", s) for name, s in files.items()}
            self.write(f"{folder}/{COMMITTED}", make_marker(records))
            if self._is_consistent(folder):
                return
            time.sleep(secrets.randbelow(1000) / 10_000 * 2**attempt)
        raise StoreError(f"{self.place(folder)}: other writers keep overwriting it; run again")

    def _is_consistent(self, folder: str) -> bool:
        """Return whether the files of a folder match its marker, whichever writer wrote them."""
        with self.open(f"{folder}/{COMMITTED}") as file:
            text = file.read()
        try:
            records = parse_marker(text)
        except ValueError:  # a rival is writing it, and this filesystem shows a half-written file
            return False
        for name, record in records.items():
            with self.open(f"{folder}/{name}") as file:
                if copy(file) != record:
                    return False
        return True


def connect(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return the filesystem of a URI and the path in it; URIs share connections."""
    try:
        parts = urlsplit(uri, allow_fragments=False)
    except ValueError as exc:  # 's3://[my-bucket]/a'
        raise StoreError(
            f"{uri!r} is not an address: {exc}; write it as s3://bucket/folder"
        ) from exc
    address = f"{parts.scheme}://{parts.netloc}" + (f"?{parts.query}" if parts.query else "")
    filesystem, root = _filesystem(address)
    path = unquote(parts.path)
    return filesystem, path if not root else _join(root, path.strip("/"))


def open_object(filesystem: pafs.FileSystem, key: str) -> BinaryIO:
    """Open an object for reading. Without a buffer, Arrow sends one request per 256 KiB."""
    return filesystem.open_input_stream(  # pyright: ignore[reportReturnType]
        key, compression=None, buffer_size=_REQUEST_BYTES
    )


@lru_cache(maxsize=64)
def _filesystem(address: str) -> tuple[pafs.FileSystem, str]:
    return pafs.FileSystem.from_uri(address)


def _join(root: str, path: str) -> str:
    return f"{root.rstrip('/')}/{path}".rstrip("/") if root else path
