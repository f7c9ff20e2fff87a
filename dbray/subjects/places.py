"""Paths in a list: what they are relative to, and which ones a list may use.

A remote list is untrusted: it may not make this machine open local files or send signed requests
to other endpoints.
"""

from __future__ import annotations

import os
import unicodedata
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dbray.spec.paths import anchor, foreign_form
from dbray.storage import local

SCHEMES = ("file", "s3", "gs")


@dataclass(frozen=True, slots=True)
class Origin:
    """The list being read: the base of its relative paths, and the default class noun.

    `options` is the query of a remote list's address, from its '?' on; its relative paths share it.
    """

    base: str
    class_noun: str | None
    options: str = ""


def is_local(path: str) -> bool:
    """Return whether this is a local path."""
    return "://" not in path or path.startswith("file://")


def local_path(path: str, folder: str) -> Path:
    """Make a local path absolute. Raises StoreError or ValueError."""
    return local.local_path(anchor(path, Path(folder))) or Path(path)


def locate(path: str, origin: Origin) -> str:
    """Return an absolute local path or a URI. Raises ValueError or StoreError for a forbidden one.

    http is forbidden: a list from a stranger could fetch addresses in private networks.
    """
    if "://" in path and path.partition("://")[0] not in SCHEMES:
        raise ValueError(f"images are read from {', '.join(SCHEMES)} only")
    if "://" in origin.base:
        return _locate_remotely(path, origin)
    return str(local_path(path, origin.base)) if is_local(path) else path


def _locate_remotely(path: str, origin: Origin) -> str:
    """Return the URI of a path in a remote list. Raises ValueError if it may not use that path."""
    if is_local(path) and (path.startswith(("/", "~", "file://")) or ".." in path.split("/")):
        raise ValueError("a remote list may not name files of this machine or leave its folder")
    place, mark, query = path.partition("?")
    if "@" in urlsplit(place).netloc or mark + query not in ("", origin.options):
        raise ValueError("a remote list may not name credentials, nor options other than its own")
    return f"{origin.base}/{place}{origin.options}" if is_local(path) else path


def named(path: str, origin: Origin) -> Path:
    """Return the local path as the list has it, before links are followed."""
    plain = unquote(urlsplit(path).path) if path.startswith("file://") else path
    with suppress(RuntimeError):  # '~nobody/x'
        return Path(origin.base) / Path(plain).expanduser()
    return Path(plain)


def why_missing(path: Path) -> tuple[str, str] | None:
    """Explain why nothing exists at a path, with a fix; None if it exists or is just missing."""
    if path.exists():
        return None
    real = os.path.realpath(path)
    if path.is_symlink() and not os.path.lexists(real):
        return f"{path} is a link to {real}, which does not exist", "repair the link, or remove it"
    if reason := foreign_form(str(path)):
        return reason
    form = unicodedata.normalize("NFC", path.name)
    with suppress(OSError):
        for other in path.parent.iterdir():
            same = unicodedata.normalize("NFC", other.name) == form
            if same and other.name != path.name:
                fix = "copy the name from a listing of the folder"
                return f"{path} differs from the name of a file only in its Unicode form", fix
    return None
