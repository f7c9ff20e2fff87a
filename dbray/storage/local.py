"""Files and folders of this machine: opened safely, replaced atomically, synced.

Owns the primitives that guarantee what is left after a crash or a power cut. Does not translate the
errors of the operating system.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from dbray.errors import StoreError


def local_path(uri: str) -> Path | None:
    """Return the absolute path of a local path or file:// URI, None for other URIs."""
    if "://" not in uri:
        plain = uri
    elif uri.startswith(("file:///", "file://localhost/")):
        plain = unquote(urlsplit(uri, allow_fragments=False).path)
    else:
        return None
    if not plain or "\0" in plain:
        raise StoreError(f"{uri!r} is not a path")
    try:
        return Path(os.path.realpath(Path(plain).expanduser()))
    except RuntimeError as exc:  # '~nobody'
        raise StoreError(f"{uri!r} is not a path: {exc}") from exc


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading. A pipe or a device, which may have no end, is an error."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
    raise StoreError(f"{path} is not a regular file")


def make_folders(folder: Path) -> None:
    """Create a folder and its parents, so that they survive a power cut."""
    if folder.is_dir():
        return
    make_folders(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


@contextmanager
def replacing(target: Path) -> Iterator[BinaryIO]:
    """Open a temporary file next to `target` that replaces it if the block succeeds."""
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("xb") as out:
            yield out
            sync(out)
        temporary.replace(target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def delete(path: Path) -> None:
    """Remove a file, link or tree if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(file: BinaryIO) -> None:
    """Flush a file's bytes to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
