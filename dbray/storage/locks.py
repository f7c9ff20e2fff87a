"""Advisory locks on files and folders of this machine.

The only place that calls flock. A lock ends when its descriptor is closed or its process dies, even
by SIGKILL. Does not know what the locks protect.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Literal

LockState = Literal["held", "taken", "unsupported"]
"""held: by this descriptor. taken: by another one. unsupported: the disk has no locks."""


def lock(descriptor: int, wait: bool = False) -> LockState:
    """Take the exclusive lock of an open file or folder; without `wait`, only if it is free."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return "taken"
    except OSError:  # some network disks
        return "unsupported"
    return "held"


def open_and_lock(folder: Path, wait: bool = False) -> tuple[int, LockState]:
    """Open a folder and take its lock. Closing the returned descriptor releases it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    return descriptor, lock(descriptor, wait)
