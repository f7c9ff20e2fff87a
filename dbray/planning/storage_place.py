"""Whether a job's storage can be where the job says; looked at without writing to it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from dbray.errors import Problem, StoreError
from dbray.spec.paths import foreign_form, is_folder
from dbray.spec.subject import Subject
from dbray.storage.local import local_path

_WITH_BUCKET = ("s3", "gs", "gcs", "abfs", "abfss")


def check_storage(
    storage: str, source: Path | None, subjects: Sequence[Subject], where: Callable[[str], str]
) -> Iterator[Problem]:
    """Find why results cannot be put there, or should not be.

    Args:
        storage: a URI, or an absolute path.
        source: the folder that the subjects are read from, if they are read from one.
        subjects: with their photographs.
        where: the line of a key of the job.
    """
    if reason := foreign_form(storage) or _why_no_address(storage) or _why_no_folder(storage):
        yield Problem("error", where("storage"), f"storage: {reason[0]}", reason[1])
        return
    folder = local_path(storage)
    if folder is None:
        return
    if not folder.parent.exists():
        fix = "check the spelling, or mount the disk; otherwise dbray makes the folder"
        what = f"storage: {folder.parent}, which is to hold it, does not exist"
        yield Problem("warning", where("storage"), what, fix)
    if source is not None and folder.is_relative_to(source):
        what = f"storage: {folder} is inside the photographs' folder {source}, so that the next "
        fix = f"choose a folder outside of it, such as {source.parent / 'runs'}"
        yield Problem("error", where("storage"), what + "run would read results as subjects", fix)
    elif inside := _photographs_in(folder, source, subjects):
        what = f"storage: the photographs in {inside} are inside the storage {folder}"
        fix = "choose another storage: whoever clears this one removes the photographs too"
        yield Problem("warning", where("storage"), what, fix)


def _photographs_in(folder: Path, source: Path | None, subjects: Sequence[Subject]) -> Path | None:
    """A folder of photographs inside of another folder."""
    places = {Path(image).parent for one in subjects for image in one.images if "://" not in image}
    inside = (place for place in sorted(places) if place.is_relative_to(folder))
    return source if source and source.is_relative_to(folder) else next(inside, None)


def _why_no_address(storage: str) -> tuple[str, str] | None:
    scheme, separator, _ = storage.partition("://")
    host = urlsplit(storage).netloc if separator else ""
    if separator and scheme in _WITH_BUCKET and not host:
        return f"{storage} names no bucket", f"write {scheme}://bucket/folder"
    if separator and scheme == "file" and host not in ("", "localhost"):
        fix = f"write file:///{storage.removeprefix('file://')}"
        return f"{storage} names the machine {host!r}, not a folder of this one", fix
    return None


def _why_no_folder(storage: str) -> tuple[str, str] | None:
    """Why results cannot be put in a folder, as far as this machine knows without writing."""
    try:
        path = local_path(storage)
    except StoreError as exc:
        return str(exc), "name a folder; it need not exist"
    if path is None:
        return None
    try:
        if not stat.S_ISDIR(path.stat().st_mode):
            return f"{storage} is a file", "name a folder; it need not exist"
    except FileNotFoundError:
        pass
    except OSError as exc:
        return f"{storage:.200} cannot be a folder: {exc.strerror}", "name a folder"
    there = next(one for one in (path, *path.parents) if is_folder(one))
    if os.access(there, os.W_OK | os.X_OK):
        return None
    fix = "give this user write access to it, or choose another storage"
    return f"{storage} cannot be written: {there} is read-only for this user", fix
