"""What a path in a list means: what it starts from, and what a list may name at all.

A remote list is somebody else's: it may not make this machine open its own files, nor send signed
requests to an endpoint of its choice.
"""

from __future__ import annotations

import os
import unicodedata
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dbray.spec.paths import anchor
from dbray.storage import local

SCHEMES = ("file", "s3", "gs")


@dataclass(frozen=True, slots=True)
class Origin:
    """The list being read: what its relative paths start from, and the default class noun.

    `options` is the query of a remote list's address, from its '?' on; its relative paths share it.
    """

    base: str
    class_noun: str | None
    options: str = ""


def is_local(path: str) -> bool:
    """Whether this is a path on this machine."""
    return "://" not in path or path.startswith("file://")


def local_path(path: str, folder: str) -> Path:
    """Make a local path absolute. Raises StoreError or ValueError."""
    return local.local_path(anchor(path, Path(folder))) or Path(path)


def locate(path: str, origin: Origin) -> str:
    """Return an absolute local path or a URI. Raises ValueError or StoreError for a forbidden one.

    http is left out because fetching what strangers name reaches into private networks.
    """
    if "://" in path and path.partition("://")[0] not in SCHEMES:
        raise ValueError(f"images are read from {', '.join(SCHEMES)} only")
    if "://" in origin.base:
        return _locate_remotely(path, origin)
    return str(local_path(path, origin.base)) if is_local(path) else path


def _locate_remotely(path: str, origin: Origin) -> str:
    """Return the URI of what a remote list names. Raises ValueError if it may not name that."""
    if is_local(path) and (path.startswith(("/", "~", "file://")) or ".." in path.split("/")):
        raise ValueError("a remote list may not name files of this machine or leave its folder")
    place, mark, query = path.partition("?")
    if "@" in urlsplit(place).netloc or mark + query not in ("", origin.options):
        raise ValueError("a remote list may not name credentials, nor options other than its own")
    return f"{origin.base}/{place}{origin.options}" if is_local(path) else path


def named(path: str, origin: Origin) -> Path:
    """The path of a file on this machine as the list names it, before links are followed."""
    plain = unquote(urlsplit(path).path) if path.startswith("file://") else path
    with suppress(RuntimeError):  # '~nobody/x'
        return Path(origin.base) / Path(plain).expanduser()
    return Path(plain)


def why_missing(path: Path) -> tuple[str, str] | None:
    """Why there is nothing at a path, and a fix; None if something is, or if it is just missing."""
    if path.exists():
        return None
    real = os.path.realpath(path)
    if path.is_symlink() and not os.path.lexists(real):
        return f"{path} is a link to {real}, which does not exist", "mend the link, or remove it"
    if "\\" in str(path):
        return f"{path} has the separators of Windows", "write '/' in place of '\\'"
    form = unicodedata.normalize("NFC", path.name)
    with suppress(OSError):
        for other in path.parent.iterdir():
            same = unicodedata.normalize("NFC", other.name) == form
            if same and other.name != path.name:
                fix = "write the name as the file has it, as by copying it from a listing"
                return f"{path} differs from the name of a file only in its Unicode form", fix
    return None
