"""Removal of library messages during a command that no user can act on.

Ray's native code writes directly to the file descriptor of standard error. Its output passes
through a filter process, so that the last output of a crash is printed too.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_LINES = (
    # Printed by every run with Ray Data. These arguments live as long as the driver.
    r"core_worker\.cc:[0-9]+: Actor with class name: .* max_restarts > 0",
)
_RAYLET_LOG = re.compile(r" Last \d+ lines of the Raylet logs:(\n +\[\d{4}-.*)*\n?")
_LAST_LINES_SECONDS = 5.0


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Remove library messages from standard error during the block."""
    grep = _redirected()
    if grep is None:
        yield
        return
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(grep.original, 2)
        grep.end()


class _Filter:
    """A grep between standard error and its former target."""

    def __init__(self, original: int) -> None:
        self.original = original
        self._grep = subprocess.Popen(
            ["grep", "--line-buffered", "-a", "-v", "-E", "|".join(_LINES)],
            stdin=subprocess.PIPE,
            stdout=original,
            start_new_session=True,  # Ctrl-C is for the command only
        )

    def take_stderr(self) -> None:
        """Send standard error through the filter."""
        assert self._grep.stdin is not None
        os.dup2(self._grep.stdin.fileno(), 2)
        self._grep.stdin.close()

    def end(self) -> None:
        """Wait for the last lines, but not for a process that still holds the pipe."""
        os.close(self.original)
        with suppress(subprocess.TimeoutExpired):
            self._grep.wait(_LAST_LINES_SECONDS)


def _redirected() -> _Filter | None:
    """Start to filter; None if standard error is closed or grep is missing."""
    try:
        found = _Filter(os.dup(2))
    except OSError:
        return None
    found.take_stderr()
    return found


def without_raylet_log(text: str) -> str:
    """Return a message of Ray about a dead node without the node's log."""
    return _RAYLET_LOG.sub("\n", text)
