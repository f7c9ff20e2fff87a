"""Storage on a local disk: atomic replacement, and commits by one rename.

Owns the staging of a commit and the removal of what dead writers left. Has the same methods as
dbray.storage.bucket. Does not check paths or translate errors: dbray.storage.store does.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pyarrow import fs as pafs

from dbray.errors import StoreError
from dbray.storage import local
from dbray.storage.locks import open_and_lock
from dbray.storage.marker import COMMITTED, FileRecord, copy, make_marker

_STAGING = ".staging-"


class Folder:
    """A local disk: plain os calls, because only they guarantee what is left after a crash."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def place(self, path: str) -> str:
        """Return a path for messages."""
        return str(self.root / path)

    def inside(self, path: str, follow: bool = True) -> Path:
        """Return the real path. Raises StoreError if a symbolic link leads out of the root."""
        full = self.root / path
        if follow or not path:
            real = Path(os.path.realpath(full))
        else:
            real = Path(os.path.realpath(full.parent), full.name)
        if not real.is_relative_to(self.root):
            raise StoreError(f"{full} leads out of {self.root} through a symbolic link")
        return real

    def arrow(self, path: str) -> tuple[pafs.FileSystem, str]:
        """Return the filesystem and the path in it."""
        return pafs.LocalFileSystem(), str(self.inside(path))

    def open(self, path: str) -> BinaryIO:
        """Open a regular file for reading."""
        return local.open_regular(self.inside(path))

    def write(self, path: str, source: bytes | Path) -> FileRecord:
        """Write a temporary file, then rename it."""
        target = self.inside(path, follow=False)
        local.make_folders(target.parent)
        with local.replacing(target) as out:
            return copy(source, out)

    def exists(self, path: str) -> bool:
        """Return whether a file or folder exists."""
        return self.inside(path).exists()

    def names(self, path: str) -> list[str]:
        """List a folder's entries."""
        try:
            return [entry.name for entry in self.inside(path).iterdir()]
        except FileNotFoundError:
            return []

    def remove(self, path: str) -> None:
        """Remove a file or tree, a folder's marker first."""
        target = self.inside(path, follow=False)
        if target.is_dir() and not target.is_symlink():
            (target / COMMITTED).unlink(missing_ok=True)
        local.delete(target)

    def commit(self, folder: str, files: Mapping[str, bytes | Path]) -> None:
        """Write everything into a hidden folder next to it, then rename that folder."""
        target = self.inside(folder, follow=False)
        local.make_folders(target.parent)
        _sweep(target.parent)
        with _staging_folder(target) as staging:
            records = {}
            for name, source in files.items():
                (staging / name).parent.mkdir(parents=True, exist_ok=True)
                with (staging / name).open("xb") as out:
                    records[name] = copy(source, out)
                    local.sync(out)
            with (staging / COMMITTED).open("xb") as out:
                out.write(make_marker(records))
                local.sync(out)
            for parent, _, _ in os.walk(staging):
                local.sync_folder(Path(parent))
            _rename_into_place(staging, target)


@contextmanager
def _staging_folder(target: Path) -> Iterator[Path]:
    """Make a hidden folder next to `target`, locked while in use so that no sweep removes it."""
    staging, descriptor = _new_staging(target)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        os.close(descriptor)


def _new_staging(target: Path) -> tuple[Path, int]:
    while True:
        staging = target.with_name(f"{_STAGING}{target.name[:100]}-{secrets.token_hex(6)}")
        staging.mkdir()
        with suppress(FileNotFoundError):  # a sweep removed it before it was locked
            descriptor, lock = open_and_lock(staging)
            if lock != "taken" and staging.exists():
                return staging, descriptor
            os.close(descriptor)


def _sweep(parent: Path) -> None:
    """Remove the staging folders of dead writers: those that no process has locked."""
    for entry in parent.iterdir():
        if entry.name.startswith(_STAGING):
            with suppress(OSError):
                descriptor, lock = open_and_lock(entry)
                if lock == "held":
                    shutil.rmtree(entry, ignore_errors=True)
                os.close(descriptor)


def _rename_into_place(staging: Path, target: Path) -> None:
    """Publish a staged folder, unless another writer was faster."""
    descriptor, _ = open_and_lock(target.parent, wait=True)
    try:
        if (target / COMMITTED).exists():
            return
        if target.exists() or target.is_symlink():
            leftover = staging.with_name(f"{staging.name}-old")
            target.rename(leftover)
            with suppress(OSError):  # it is hidden now, and the next commit sweeps it
                local.delete(leftover)
        try:
            staging.rename(target)
        except OSError:
            # On a network disk without locks, two machines may get here at the same time.
            if not (target / COMMITTED).exists():
                raise
        local.sync_folder(target.parent)
    finally:
        os.close(descriptor)
