"""What libraries print during a command although no user can act on it: it is taken out.

Ray's native code writes to the file descriptor of standard error itself. What goes there passes
through a filter, which is a process, so that what a crash prints last comes out too.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_LINES = (
    # Printed by every run with Ray Data. The arguments in question live as long as the driver.
    r"core_worker\.cc:[0-9]+: Actor with class name: .* max_restarts > 0",
)
_RAYLET_LOG = re.compile(r" Last \d+ lines of the Raylet logs:(\n +\[\d{4}-.*)*\n?")
_LAST_LINES_SECONDS = 5.0


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Take foreign lines out of standard error, as long as the block lasts."""
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
    """A grep between standard error and where it went before."""

    def __init__(self, original: int) -> None:
        self.original = original
        self._grep = subprocess.Popen(
            ["grep", "--line-buffered", "-a", "-v", "-E", "|".join(_LINES)],
            stdin=subprocess.PIPE,
            stdout=original,
            start_new_session=True,  # Ctrl-C is for the command alone
        )

    def take_stderr(self) -> None:
        """Have standard error pass through."""
        assert self._grep.stdin is not None
        os.dup2(self._grep.stdin.fileno(), 2)
        self._grep.stdin.close()

    def end(self) -> None:
        """Wait for the last lines; a process that still holds the pipe is not waited for."""
        os.close(self.original)
        with suppress(subprocess.TimeoutExpired):
            self._grep.wait(_LAST_LINES_SECONDS)


def _redirected() -> _Filter | None:
    """Begin to filter; None where standard error is closed, or grep is missing."""
    try:
        found = _Filter(os.dup(2))
    except OSError:
        return None
    found.take_stderr()
    return found


def without_raylet_log(text: str) -> str:
    """A message of Ray's about a dead node, without the node's log."""
    return _RAYLET_LOG.sub("\n", text)
