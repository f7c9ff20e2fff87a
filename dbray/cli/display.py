"""Standard output and error that never end a command.

A reader may leave (`| head`), a disk may be full, a terminal may be closed: the command continues,
and only its text is lost.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from dbray.cli.noise import without_raylet_log


class Display:
    """A text stream that drops its text after the stream below it fails."""

    def __init__(self, stream: TextIO | None) -> None:
        self.failure: OSError | None = None
        self._stream = stream or io.StringIO()
        if stream is None:  # closed by the shell: `>&-`
            self.failure = OSError(errno.EBADF, os.strerror(errno.EBADF))

    def write(self, text: str) -> int:
        """Write text, or drop it."""
        if self.failure is None:
            try:
                self._stream.write(without_raylet_log(text))
            except OSError as exc:
                self._fail(exc)
        return len(text)

    def flush(self) -> None:
        """Flush, if the stream still accepts text."""
        if self.failure is None:
            try:
                self._stream.flush()
            except OSError as exc:
                self._fail(exc)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def loss(self) -> str | None:
        """Why text was lost; None if none was, or if the reader left."""
        if self.failure is None or self.failure.errno == errno.EPIPE:
            return None
        return f"the output cannot be written: {self.failure.strerror}"

    def _fail(self, exc: OSError) -> None:
        self.failure = exc
        # Discard what is still buffered, also when the interpreter flushes at exit.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


@contextmanager
def displays() -> Iterator[Display]:
    """Print through displays; yields that of standard output."""
    before = sys.stdout, sys.stderr
    output, errors = Display(sys.stdout), Display(sys.stderr)
    sys.stdout, sys.stderr = cast("TextIO", output), cast("TextIO", errors)
    try:
        yield output
    finally:
        output.flush()
        errors.flush()
        sys.stdout, sys.stderr = before
