"""Display of progress: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed
from rich.progress import TimeRemainingColumn as Remaining

from dbray.records.results import Outcome
from dbray.spec.prompts import fill_prompt

_LINE_SECONDS = 10.0


class Terminal:
    """Draws one bar per phase; a `dbray.run.watch.Watch`."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<13}"),
            BarColumn(),
            MofNCompleteColumn(),
            Elapsed(),
            Remaining(),
            TextColumn("[dim]{task.fields[detail]}"),
            console=Console(),
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Terminal:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        self._progress.console.print(text, highlight=False, markup=False)

    def progress(self, phase: str, done: int, total: int, detail: str = "") -> None:
        """Move the bar of a phase."""
        if phase not in self._tasks:
            self._tasks[phase] = self._progress.add_task(phase, total=total, detail="")
        self._progress.update(self._tasks[phase], completed=done, total=total, detail=detail)

    def ended(self, outcome: Outcome) -> None:
        """Print a subject that failed; the bar counts the others."""
        if outcome.error is not None:
            self.note(describe(outcome))


class Lines:
    """Prints a line per subject that ends, and one every ten seconds; for logs."""

    def __init__(self) -> None:
        self._last = 0.0

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def note(self, text: str) -> None:
        """Print a line."""
        print(text, flush=True)

    def progress(self, phase: str, done: int, total: int, detail: str = "") -> None:
        """Print a line, if the last one is old enough or the phase is done."""
        if done == total or time.monotonic() - self._last > _LINE_SECONDS:
            self._last = time.monotonic()
            print(f"{phase}: {done}/{total} {detail}".rstrip(), flush=True)

    def ended(self, outcome: Outcome) -> None:
        """Print the outcome of a subject."""
        print(describe(outcome), flush=True)


def describe(outcome: Outcome) -> str:
    """Describe the outcome of a subject in one line."""
    if outcome.error is not None:
        return f"failed    {outcome.id}: {outcome.error.kind}: {outcome.error.message}"
    name = fill_prompt("{subject}", outcome.class_noun, outcome.identifier)
    return f'published {outcome.id}@{outcome.revision} ("{name}", {outcome.seconds:.1f} s)'


def watch() -> Terminal | Lines:
    """Return bars on a terminal, else lines."""
    return Terminal() if sys.stdout.isatty() else Lines()


@contextmanager
def step_bar(label: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a bar where standard error is a terminal; gives a function that moves it by one."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Remaining(),
        console=console, transient=True, disable=not console.is_terminal,
        # Above the bar, but never into it where the output goes elsewhere.
        redirect_stdout=sys.stdout.isatty(),
    ) as progress:  # fmt: skip
        task = progress.add_task(label, total=total)
        yield lambda: progress.advance(task)
