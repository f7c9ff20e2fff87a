"""How bytes come to rest: the two kinds of storage behind dbray.storage.store.

Owns atomic replacement, staging and commit, on a local disk (Folder) and on an object store or
anything else that pyarrow.fs opens (Bucket). Both have the same methods. Paths come in checked, and
what the operating system and pyarrow raise goes out as it is: dbray.storage.store sees to both.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Literal
from urllib.parse import unquote, urlsplit

from pyarrow import fs as pafs

from dbray.errors import StoreError, without_secrets

COMMITTED = "_COMMITTED"

_STAGING = ".staging-"
_CHUNK_BYTES = 1 << 20
_REQUEST_BYTES = 8 << 20
_BUCKET_TRIES = 8


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What the marker of a committed folder says about one file."""

    sha256: str
    size_bytes: int


class Folder:
    """A local disk: plain os calls, because only they promise what is left after a crash."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def place(self, path: str) -> str:
        """Name a path for people."""
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
        return open_regular(self.inside(path))

    def write(self, path: str, source: bytes | Path) -> FileRecord:
        """Write a file beside its place, then move it there."""
        target = self.inside(path, follow=False)
        make_folders(target.parent)
        with replacing(target) as out:
            return _write(source, out)

    def exists(self, path: str) -> bool:
        """Say whether a file or folder is there."""
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
        delete(target)

    def commit(self, folder: str, files: Mapping[str, bytes | Path]) -> None:
        """Write everything into a hidden folder beside, then rename that into place."""
        target = self.inside(folder, follow=False)
        make_folders(target.parent)
        _sweep(target.parent)
        with _staging_folder(target) as staging:
            records = {}
            for name, source in files.items():
                (staging / name).parent.mkdir(parents=True, exist_ok=True)
                with (staging / name).open("xb") as out:
                    records[name] = _write(source, out)
                    _sync(out)
            with (staging / COMMITTED).open("xb") as out:
                out.write(marker_of(records))
                _sync(out)
            for parent, _, _ in os.walk(staging):
                _sync_folder(Path(parent))
            _rename_into_place(staging, target)


class Bucket:
    """An object store: single puts are atomic, renames do not exist, so the marker goes last."""

    def __init__(self, uri: str, filesystem: pafs.FileSystem | None) -> None:
        self._uri = uri
        self._given = filesystem

    def arrow(self, path: str) -> tuple[pafs.FileSystem, str]:
        """Return the filesystem and the key in it."""
        filesystem, root = (self._given, self._uri) if self._given else connect(self._uri)
        return filesystem, _join(root, path)

    def place(self, path: str) -> str:
        """Name a path for people, without credentials and options."""
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
            return _write(source, out)  # pyright: ignore[reportArgumentType]

    def exists(self, path: str) -> bool:
        """Say whether an object, or any object below, is there."""
        filesystem, key = self.arrow(path)
        return filesystem.get_file_info(key).type != pafs.FileType.NotFound

    def names(self, path: str) -> list[str]:
        """List the entries directly under a prefix."""
        filesystem, key = self.arrow(path)
        infos = filesystem.get_file_info(pafs.FileSelector(key, allow_not_found=True))
        return [info.base_name for info in infos]

    def remove(self, path: str) -> None:
        """Remove an object, or all below a prefix, its marker first."""
        filesystem, key = self.arrow(path)
        kind = filesystem.get_file_info(key).type
        if kind == pafs.FileType.File:
            filesystem.delete_file(key)
        elif kind == pafs.FileType.Directory:
            with suppress(FileNotFoundError):
                filesystem.delete_file(_join(key, COMMITTED))
            filesystem.delete_dir(key)

    def commit(self, folder: str, files: Mapping[str, bytes | Path]) -> None:
        """Write the files, then the marker, and read all back; again if a rival mixed its own in.

        Leftovers of an interrupted commit are overwritten and never deleted: they may be those of
        a writer at work. Every writer reads back after its last write, so the last of all has seen
        what stays. Rivals wait for random times, else they could go on forever.
        """
        for attempt in range(_BUCKET_TRIES):
            records = {name: self.write(f"{folder}/{name}", s) for name, s in files.items()}
            self.write(f"{folder}/{COMMITTED}", marker_of(records))
            if self._is_consistent(folder):
                return
            time.sleep(secrets.randbelow(1000) / 10_000 * 2**attempt)
        raise StoreError(f"{self.place(folder)}: other writers keep overwriting it; run again")

    def _is_consistent(self, folder: str) -> bool:
        """Say whether a folder is what its marker says, whoever wrote that."""
        with self.open(f"{folder}/{COMMITTED}") as file:
            text = file.read()
        try:
            records = parse_marker(text)
        except ValueError:  # a rival is writing it, and this filesystem shows half of it
            return False
        for name, record in records.items():
            with self.open(f"{folder}/{name}") as file:
                if copy(file) != record:
                    return False
        return True


def open_disk(uri: str, filesystem: pafs.FileSystem | None = None) -> Folder | Bucket:
    """Choose the kind of storage for a path or URI; nothing is contacted yet."""
    if filesystem is None:
        root = local_path(uri)
        if root is not None:
            return Folder(root)
    return Bucket(uri, filesystem)


def local_path(uri: str) -> Path | None:
    """Return the absolute path of a local path or file:// URI, None for other URIs."""
    if "://" not in uri:
        plain = uri
    elif uri.startswith(("file:///", "file://localhost/")):
        plain = unquote(urlsplit(uri, allow_fragments=False).path)
    else:
        return None
    if not plain or "\0" in plain:
        raise StoreError(f"{uri!r} is no path")
    try:
        return Path(os.path.realpath(Path(plain).expanduser()))
    except RuntimeError as exc:  # '~nobody'
        raise StoreError(f"{uri!r} is no path: {exc}") from exc


def connect(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return the filesystem of a URI and the path in it; one connection serves many URIs."""
    try:
        parts = urlsplit(uri, allow_fragments=False)
    except ValueError as exc:  # 's3://[my-bucket]/a'
        raise StoreError(f"{uri!r} is no address: {exc}; write it as s3://bucket/folder") from exc
    address = f"{parts.scheme}://{parts.netloc}" + (f"?{parts.query}" if parts.query else "")
    filesystem, root = _filesystem(address)
    path = unquote(parts.path)
    return filesystem, path if not root else _join(root, path.strip("/"))


def open_object(filesystem: pafs.FileSystem, key: str) -> BinaryIO:
    """Open an object for reading. Without a buffer, Arrow would ask for each 256 KiB by itself."""
    return filesystem.open_input_stream(  # pyright: ignore[reportReturnType]
        key, compression=None, buffer_size=_REQUEST_BYTES
    )


@lru_cache(maxsize=64)
def _filesystem(address: str) -> tuple[pafs.FileSystem, str]:
    return pafs.FileSystem.from_uri(address)


def _join(root: str, path: str) -> str:
    return f"{root.rstrip('/')}/{path}".rstrip("/") if root else path


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; never waits on a pipe or reads a device without end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
    raise StoreError(f"{path} is no regular file")


def copy(source: bytes | BinaryIO, out: BinaryIO | None = None) -> FileRecord:
    """Digest and count bytes, and write them to `out` if given."""
    sha, size_bytes = hashlib.sha256(), 0
    chunks = [source] if isinstance(source, bytes) else iter(lambda: source.read(_CHUNK_BYTES), b"")
    for chunk in chunks:
        sha.update(chunk)
        size_bytes += len(chunk)
        if out is not None:
            out.write(chunk)
    return FileRecord(sha.hexdigest(), size_bytes)


def _write(source: bytes | Path, out: BinaryIO) -> FileRecord:
    if isinstance(source, Path):
        with open_regular(source) as file:
            return copy(file, out)
    return copy(source, out)


def marker_of(records: Mapping[str, FileRecord]) -> bytes:
    """Write the marker of a folder that holds these files."""
    value = {
        "files": {name: asdict(record) for name, record in sorted(records.items())},
        "committed_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return json.dumps(value, indent=1).encode()


def parse_marker(text: bytes) -> dict[str, FileRecord]:
    """Read what `marker_of` wrote. Raises ValueError where it is anything else."""
    try:
        return {name: FileRecord(**record) for name, record in json.loads(text)["files"].items()}
    except (KeyError, TypeError, AttributeError) as exc:
        raise ValueError(f"no marker: {exc!r}") from exc


def make_folders(folder: Path) -> None:
    """Create a folder and its parents, so that they outlive a power cut."""
    if folder.is_dir():
        return
    make_folders(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


@contextmanager
def replacing(target: Path) -> Iterator[BinaryIO]:
    """Give a temporary file beside `target` that takes its place if the block succeeds."""
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("xb") as out:
            yield out
            _sync(out)
        temporary.replace(target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


@contextmanager
def _staging_folder(target: Path) -> Iterator[Path]:
    """Give a hidden folder beside `target`, locked while in use so that no sweep takes it."""
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
        with suppress(FileNotFoundError):  # a sweep came between
            descriptor, lock = _lock(staging)
            if lock != "taken" and staging.exists():
                return staging, descriptor
            os.close(descriptor)


def _sweep(parent: Path) -> None:
    """Remove the staging folders of writers that died: those that no living process has locked."""
    for entry in parent.iterdir():
        if entry.name.startswith(_STAGING):
            with suppress(OSError):
                descriptor, lock = _lock(entry)
                if lock == "held":
                    shutil.rmtree(entry, ignore_errors=True)
                os.close(descriptor)


def _lock(folder: Path, wait: bool = False) -> tuple[int, Literal["held", "taken", "unsupported"]]:
    """Take a folder's advisory lock; it ends with the descriptor or the process."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return descriptor, "taken"
    except OSError:
        return descriptor, "unsupported"
    return descriptor, "held"


def _rename_into_place(staging: Path, target: Path) -> None:
    """Publish a staged folder, unless somebody else did so first."""
    descriptor, _ = _lock(target.parent, wait=True)
    try:
        if (target / COMMITTED).exists():
            return
        if target.exists() or target.is_symlink():
            leftover = staging.with_name(f"{staging.name}-old")
            target.rename(leftover)
            with suppress(OSError):  # hidden now, and swept by the next commit
                delete(leftover)
        try:
            staging.rename(target)
        except OSError:
            # Only where locks do not reach: two machines on a network disk without them.
            if not (target / COMMITTED).exists():
                raise
        _sync_folder(target.parent)
    finally:
        os.close(descriptor)


def delete(path: Path) -> None:
    """Remove a file, link or tree; missing is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
