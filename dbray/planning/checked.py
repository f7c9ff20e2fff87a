"""A job that was checked: what is usable of it, what is wrong with it, and what a run needs.

Needs neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dbray.bases import Base
from dbray.errors import Problem, SpecError
from dbray.planning.auto_nouns import ChosenNoun
from dbray.planning.names import Naming
from dbray.spec.job import Job
from dbray.spec.subject import Subject
from dbray.subjects.validation import CheckedSubject

Sources = Mapping[str, Mapping[str, str]]
"""By section of a job, where the value of each field comes from."""


@dataclass(frozen=True)
class InvalidSubject:
    """A subject that cannot be trained, and why."""

    id: str
    reason: str
    subject: Subject | None
    """None if it could not even be read."""


@dataclass(frozen=True)
class Ready:
    """A job without errors, with what it left open filled in for its base."""

    job: Job
    base: Base
    subjects: Sequence[CheckedSubject]
    naming: Naming
    warnings: Sequence[Problem]
    invalid: Sequence[InvalidSubject] = ()
    """Subjects that are skipped."""
    file: Path | None = None
    """The job file, as an absolute path; None for a job made in Python."""
    has_default_id: bool = False
    sources: Sources = field(default_factory=dict)
    chosen_nouns: Mapping[str, ChosenNoun] = field(default_factory=dict)
    """By subject id, the class nouns that dbray chose."""


@dataclass
class Checked:
    """The usable parts of a job, and everything that is wrong with it."""

    job: Job | None = None
    base: Base | None = None
    subjects: Sequence[CheckedSubject] = ()
    invalid: Sequence[Subject] = ()
    naming: Naming | None = None
    file: Path | None = None
    has_default_id: bool = False
    sources: Sources = field(default_factory=dict)
    chosen_nouns: Mapping[str, ChosenNoun] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def errors(self) -> list[Problem]:
        """What stops a job."""
        return [problem for problem in self.problems if problem.severity == "error"]

    def leave_out(self, ids: Collection[str | None]) -> None:
        """Move usable subjects to the invalid ones."""
        out = [one.subject for one in self.subjects if one.subject.id in ids]
        if out and self.naming is not None:
            self.subjects = [one for one in self.subjects if one.subject.id not in ids]
            self.invalid = [*self.invalid, *out]
            self.naming = self.naming.without({subject.id for subject in out})

    def ready(self, skip_invalid: bool = False) -> Ready:
        """Return what a run needs.

        Args:
            skip_invalid: leave out subjects with errors, unless no subject is left.

        Raises:
            SpecError: with all the problems, if one of them stops the job.
        """
        skipped = self._skippable() if skip_invalid and self.subjects else {}
        stops = any(error.subject not in skipped for error in self.errors)
        if stops or self.job is None or self.base is None or self.naming is None:
            raise SpecError(self.problems)
        return Ready(
            self.job, self.base, self.subjects, self.naming, self.problems,
            tuple(skipped.values()), self.file, self.has_default_id, self.sources,
            self.chosen_nouns,
        )  # fmt: skip

    def _skippable(self) -> dict[str, InvalidSubject]:
        """Subjects with errors, by id."""
        known = {one.id: one for one in self.invalid}
        usable = {one.subject.id for one in self.subjects}
        reasons: dict[str, str] = {}
        for error in self.errors:
            if error.subject is not None:
                reasons.setdefault(error.subject, f"{error.where}: {error.what}")
        return {
            name: InvalidSubject(name, reason, known.get(name))
            for name, reason in reasons.items()
            if name not in usable
        }
