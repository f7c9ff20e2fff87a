"""How users say where something is: local paths, URIs, and names of bases.

Owns what relative paths become. Opens nothing: whether something is there is for its reader to say.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

MINIATURE = "miniature"
"""The base that comes with dbray."""


def is_address(value: Any) -> bool:
    """Whether a value can be a path or URI, whether or not anything is there."""
    return (
        isinstance(value, str)
        and bool(value.strip())
        and not any(ord(char) < 32 or "\ud800" <= char <= "\udfff" for char in value)
    )


def _check_address(address: str) -> str:
    if not is_address(address):
        raise ValueError("not a path or address: it is empty, or holds control characters")
    return address


def _text_of_path(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


Address = Annotated[str, BeforeValidator(_text_of_path), AfterValidator(_check_address)]
"""A local path or a URI."""


def anchor(path: str, folder: Path) -> str:
    """Make a local path absolute, relative to `folder`; URIs pass unchanged."""
    if "://" in path:
        return path
    local = Path(path)
    with suppress(RuntimeError):  # '~nobody/x' stays as it is, and its reader reports it missing
        local = local.expanduser()
    return os.path.realpath(folder / local)


def anchor_base(base: str, folder: Path) -> str:
    """Make a base that is a folder absolute; the miniature's name and hub ids pass unchanged."""
    anchored = anchor(base, folder)
    is_path = base.startswith((".", "~")) or (base != "" and is_folder(anchored))
    return anchored if is_path and base != MINIATURE else base


def is_folder(path: str | Path) -> bool:
    """Whether a folder is there. Unlike Path.is_dir, it raises for no path."""
    return os.path.isdir(path)  # noqa: PTH112
