"""All that is wrong with a job, at once: its file, its base, its subjects, images and identifiers.

A run begins only where nothing is. Owns the order of looking; what is wrong is said by those who
read each part. Needs neither torch nor Ray, and asks no registry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dbray import backbones, manifest, naming
from dbray.backbones import Base
from dbray.errors import BaseError, Problem, SpecError
from dbray.jobfile import Job, draft_job
from dbray.listings import Source
from dbray.manifest import CheckedSubject


@dataclass(frozen=True)
class Ready:
    """A job in which nothing is wrong."""

    job: Job
    base: Base
    subjects: Sequence[CheckedSubject]
    warnings: Sequence[Problem]


@dataclass
class Checked:
    """What is right in a job and what it names, and everything that is wrong."""

    job: Job | None = None
    base: Base | None = None
    subjects: Sequence[CheckedSubject] = ()
    problems: list[Problem] = field(default_factory=list)

    @property
    def errors(self) -> list[Problem]:
        """What stops a job."""
        return [problem for problem in self.problems if problem.severity == "error"]

    def ready(self) -> Ready:
        """Return what a run needs. Raises SpecError, with all the problems, where it may not be."""
        if self.errors or self.job is None or self.base is None:
            raise SpecError(self.problems)
        return Ready(self.job, self.base, self.subjects, self.problems)


def check_file(file: Path) -> Checked:
    """Check a job file and all that it names, whatever of it is wrong."""
    try:
        draft = draft_job(file)
    except SpecError as exc:
        return Checked(problems=list(exc.problems))
    checked = _check(draft.job, draft.subjects, draft.where("base"), file.resolve().parent)
    return replace(checked, problems=[*draft.problems, *checked.problems])


def check_job(job: Job) -> Checked:
    """Check all that a job names. Relative paths start from the working folder."""
    return _check(job, job.subjects, "job", Path.cwd())


def _check(job: Job, source: Source | None, where: str, folder: Path) -> Checked:
    """Check a job. `where` is that of its base; a base of "" and no source are told already."""
    checked = Checked(job)
    if job.base:
        try:
            checked.base = backbones.resolve(job.base, job.base_revision)
        except BaseError as exc:
            checked.problems.append(Problem("error", where, f"base: {exc}", "change 'base'"))
    if source is not None:
        found = manifest.validate(source, folder=folder)
        checked.problems += found.problems
        checked.subjects = found.subjects
    if checked.base is not None:
        subjects = [one.subject for one in checked.subjects]
        checked.problems += naming.check_names(job, checked.base, subjects)
    return checked
