"""Where things are: local paths, URIs, and names of bases, as users write them.

Owns how relative paths become absolute. Opens nothing: the reader of a path reports a missing one.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

MINIATURE = "miniature"
"""The base that is part of dbray."""
_DRIVE = re.compile(r"(?:^|/)[A-Za-z]:[\\/]")
_ONE_SLASH = re.compile(r"(?:^|/)(file|s3|gs|gcs|hdfs|viewfs|abfss?|https?):/")


def is_address(value: Any) -> bool:
    """Return whether a value can be a path or URI; it need not exist."""
    return (
        isinstance(value, str)
        and bool(value.strip())
        and not any(ord(char) < 32 or "\ud800" <= char <= "\udfff" for char in value)
    )


def _check_address(address: str) -> str:
    if not is_address(address):
        raise ValueError("not a path or address: it is empty, or has control characters")
    return address


def _text_of_path(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


Address = Annotated[str, BeforeValidator(_text_of_path), AfterValidator(_check_address)]
"""A local path or a URI."""


def foreign_form(path: str) -> tuple[str, str] | None:
    """What is wrong with a Windows path or a URI with one slash, and a fix; else None.

    Both are valid names of local files, and so would be taken for such.
    """
    if "://" in path:
        return None
    if drive := _DRIVE.search(path):
        written = path[drive.start() :].lstrip("/")
        unix = f"/mnt/{written[0].lower()}/{written[3:]}".replace("\\", "/")
        fix = f"give a path of this machine, which in WSL is {unix}"
        return f"{written} is a Windows path", fix
    if "\\" in path:
        return f"{path} has Windows separators", "write '/' in place of '\\'"
    if scheme := _ONE_SLASH.search(path):
        name, rest = scheme[1], path[scheme.end() :]
        what = f"{name}:/{rest} would be a folder of this machine named '{name}:'"
        return what, f"write {name}://{rest}"
    return None


def anchor(path: str, folder: Path) -> str:
    """Make a local path absolute, relative to `folder`; URIs stay unchanged."""
    if "://" in path:
        return path
    local = Path(path)
    with suppress(RuntimeError):  # '~nobody/x' stays unchanged, and its reader reports it
        local = local.expanduser()
    return os.path.realpath(folder / local)


def anchor_base(base: str, folder: Path) -> str:
    """Make the path of a base absolute; the miniature's name and hub ids stay unchanged."""
    anchored = anchor(base, folder)
    is_path = base.startswith((".", "~")) or (base != "" and is_folder(anchored))
    return anchored if is_path and base != MINIATURE else base


def is_folder(path: str | Path) -> bool:
    """Return whether a folder exists. Unlike Path.is_dir, it never raises."""
    return os.path.isdir(path)  # noqa: PTH112
