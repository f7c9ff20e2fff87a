"""A folder of local copies that is removed after its process, even a killed one.

A process locks a file in its folder for as long as it lives. A new folder's owner removes those
beside it that nobody has locked: their owners are dead.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from dbray.storage import locks

_PREFIX = "dbray-serving-"
_LOCK = "lock"


class Scratch:
    """A new folder under `parent`, or in the temporary folder; abandoned ones are removed first."""

    def __init__(self, parent: str | None = None) -> None:
        place = Path(parent or tempfile.gettempdir())
        place.mkdir(parents=True, exist_ok=True)
        for other in place.glob(f"{_PREFIX}*"):
            _remove_if_abandoned(other)
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
        # Locked before it is renamed to what others look for, so it is never seen unlocked.
        unlocked = self.folder / f"{_LOCK}.new"
        self._lock = os.open(unlocked, os.O_CREAT | os.O_RDWR, 0o600)
        locks.lock(self._lock, wait=True)
        unlocked.rename(self.folder / _LOCK)

    def close(self) -> None:
        """Remove the folder; a second call does nothing."""
        if self._lock >= 0:
            shutil.rmtree(self.folder, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def _remove_if_abandoned(folder: Path) -> None:
    with suppress(OSError):  # it has no lock file yet, or belongs to another user
        lock = os.open(folder / _LOCK, os.O_RDWR)
        try:
            if locks.lock(lock) == "held":
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)
