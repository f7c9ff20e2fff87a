"""Output of commands: problems, tables, and quoted shell commands."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dbray.errors import Problem, SpecError, StoreError

_WIDTH_OF_A_FILE = 10_000


def shell_command(*words: str | Path) -> str:
    """Return a dbray command to paste into this shell.

    `make demo` runs dbray from an environment that is not active, so the full path may be needed.
    """
    program = "dbray" if shutil.which("dbray") else Path(sys.executable).with_name("dbray")
    return shlex.join(map(str, (program, *words)))


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Raise SpecError if a file cannot be written: another -o is needed."""
    try:
        yield
    except (OSError, StoreError) as exc:
        what = f"cannot be written: {getattr(exc, 'strerror', None) or exc}"
        where = str(getattr(exc, "filename", None) or place)
        raise SpecError.of(where, what, "choose another -o") from exc


def print_problems(problems: Iterable[Problem]) -> None:
    """Print each problem with its fix."""
    for problem in problems:
        print(problem)


def print_table(rows: Iterable[Sequence[str]], headings: Sequence[str] = ()) -> None:
    """Print rows in columns; a terminal wraps long cells, a file or pipe gets a line per row."""
    table = Table(*headings, box=None, pad_edge=False, show_header=bool(headings))
    for row in rows:
        # User input is not markup.
        table.add_row(*(Text(cell, overflow="fold") for cell in row))
    if sys.stdout.isatty():
        Console(highlight=False).print(table)
        return
    console = Console(width=_WIDTH_OF_A_FILE, highlight=False, color_system=None)
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        print(line.rstrip())  # rich fills the last column with blanks
