"""Reading of committed folders: which files were published, and whether they are still the same.

A committed folder holds the marker `_COMMITTED`, written last. A folder without a marker does not
exist. `Store.commit` publishes one; this module reads it.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from dbray.errors import DigestMismatch, FileMissing, StoreError
from dbray.storage.marker import COMMITTED, FileRecord, copy, mismatch, parse_marker
from dbray.storage.store import Store, digest_file


class Committed:
    """One committed folder. Its marker is read once, at the first use.

    Every method raises FileMissing if the folder is not committed, DigestMismatch if its marker or
    the file is damaged, and StoreError if storage fails.
    """

    def __init__(self, store: Store, folder: str) -> None:
        self._store, self._folder = store, folder

    @cached_property
    def files(self) -> dict[str, FileRecord]:
        """Digest and size of every file, by name."""
        path = f"{self._folder}/{COMMITTED}"
        text = self._store.read_bytes(path)
        try:
            return parse_marker(text)
        except ValueError as exc:
            place = self._store.location(path)
            raise DigestMismatch(f"{place} is not a marker: {exc!r}") from exc

    def read(self, name: str) -> bytes:
        """Read a file."""
        path, expected = self._path(name), self._record(name)
        try:
            data = self._store.read_bytes(path)
        except FileMissing as exc:
            raise mismatch(self._store.location(path), expected, None) from exc
        found = copy(data)
        if found != expected:
            raise mismatch(self._store.location(path), expected, found)
        return data

    def damaged(self) -> list[str]:
        """Return the names of the files that are missing or differ from the published ones."""
        return [
            n for n in sorted(self.files) if self._store.measure(self._path(n)) != self.files[n]
        ]

    def fetch(self, names: Iterable[str], destination: Path) -> dict[str, Path]:
        """Return verified local files, by name.

        Files of a local store stay in place. Others are copied to `destination`; files there that
        match are kept.
        """
        expected = {name: self._record(name) for name in names}
        return {name: self._fetch(name, one, destination) for name, one in expected.items()}

    def local_paths(self, names: Iterable[str]) -> dict[str, Path]:
        """Return the local paths of files, unverified. StoreError if the store is remote."""
        found = {name: self._store.local_path(self._path(name)) for name in names}
        here = {name: path for name, path in found.items() if path is not None}
        if len(here) < len(found):
            raise StoreError(f"{self._store.location(self._folder)} is not on this machine")
        return here

    def _fetch(self, name: str, expected: FileRecord, destination: Path) -> Path:
        path = self._path(name)
        local = self._store.local_path(path)
        if local is not None:
            found = self._store.measure(path)
            if found != expected:
                raise mismatch(self._store.location(path), expected, found)
            return local
        local = destination / name
        if not local.is_file() or digest_file(local) != expected.sha256:
            self._store.download(path, local, expected)
        return local

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}"

    def _record(self, name: str) -> FileRecord:
        if name not in self.files:
            place = self._store.location(self._folder)
            raise StoreError(f"{place} was published without {name!r}")
        return self.files[name]
