"""Receivers of a run's progress: the command line displays it, tests record it."""

from __future__ import annotations

from typing import Protocol

from dbray.records.results import Outcome


class Watch(Protocol):
    """Receives the progress of a run."""

    def note(self, text: str) -> None:
        """Something happened that is worth a line."""
        ...

    def progress(self, phase: str, done: int, total: int, detail: str = "") -> None:
        """`done` of `total` are finished in phase 'class images', 'training' or 'previews'."""
        ...

    def ended(self, outcome: Outcome) -> None:
        """A subject ended."""
        ...


class Silence:
    """A Watch that shows nothing."""

    def note(self, text: str) -> None:
        """Show nothing."""

    def progress(self, phase: str, done: int, total: int, detail: str = "") -> None:
        """Show nothing."""

    def ended(self, outcome: Outcome) -> None:
        """Show nothing."""
