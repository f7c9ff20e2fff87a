"""Folders that are named by a path or by an id of the Hugging Face hub, and files that are hashed.

Owns how such a name is understood, and downloads. Does not know what the folders hold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from dbray.errors import BaseError
from dbray.spec.canon import is_commit
from dbray.spec.paths import anchor, is_folder


def find_folder(
    name: str, revision: str | None, download: Callable[[str], Path], *, known: str, pin: str
) -> tuple[Path, str | None]:
    """Return the folder with a name and, if it is from the hub, its commit.

    Args:
        name: a folder, or a hub id.
        revision: the commit of a hub id.
        download: returns the folder of a commit.
        known: for the error: what may be given.
        pin: for the error: where the commit belongs.

    Raises:
        BaseError: the folder does not exist, or a hub id has no commit; as `download`.
    """
    folder = Path(anchor(name, Path.cwd()))
    if is_folder(folder):
        return folder, None
    if Path(name).is_absolute() or name.count("/") != 1:
        raise BaseError(f"it does not exist; give {known}")
    if revision is None or not is_commit(revision):
        raise BaseError(f"there is no such folder. If it is a hub id, {pin} (40 hex digits), so "
                        "that results repeat and the weights cannot be exchanged")  # fmt: skip
    return download(revision), revision


def download(
    name: str, revision: str, patterns: Sequence[str], ignored: Sequence[str] = ()
) -> Path:
    """Return the folder with the matching files of a commit; what is here is not fetched again.

    Raises:
        BaseError: they cannot be downloaded.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[*patterns],
                                      ignore_patterns=[*ignored]))  # fmt: skip
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as exc:
        raise BaseError(f"{revision} cannot be downloaded from the hub: {exc}; check the id, the "
                        "commit and the network") from exc  # fmt: skip


def digest_once(file: Path) -> str:
    """Hash a file once per process while its size and modification time stay. Raises OSError."""
    state = file.stat()
    return _digest(file, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=4096)
def _digest(file: Path, _size_bytes: int, _changed_ns: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
