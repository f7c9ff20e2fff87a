"""All that is wrong with a job, at once: its file, its base, its subjects, images and identifiers.

A run begins only where nothing is. Owns the order of looking; what is wrong is said by those who
read each part. Needs neither torch nor Ray, and asks no registry.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dbray import bases
from dbray.bases import Base
from dbray.errors import BaseError, Problem, SpecError
from dbray.planning import names
from dbray.spec.base import Spec
from dbray.spec.job import Job, anchored, draft_job
from dbray.spec.sections import Previews, Prior, Recipe
from dbray.subjects import validation
from dbray.subjects.listings import Source
from dbray.subjects.validation import CheckedSubject


@dataclass(frozen=True)
class Ready:
    """A job in which nothing is wrong, with what it left open filled in for its base."""

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
    checked = _check(draft.job, draft.subjects, draft.where, file.resolve().parent)
    return replace(checked, problems=[*draft.problems, *checked.problems])


def check_job(job: Job) -> Checked:
    """Check a job made in Python and all that it names. Its paths start from the working folder."""
    folder = Path.cwd()
    job = anchored(job, folder)
    return _check(job, job.subjects, lambda key: f"job.{key}", folder)


def _check(job: Job, source: Source | None, where: Callable[[str], str], folder: Path) -> Checked:
    """Check what a job names; a base of "" and no source are told already."""
    checked = Checked(job)
    if reason := _why_no_folder(job.storage):
        fix = "name a folder, there already or not"
        checked.problems.append(Problem("error", where("storage"), f"storage: {reason}", fix))
    if job.base:
        try:
            checked.base = bases.resolve(job.base, job.base_revision)
        except BaseError as exc:
            checked.problems.append(
                Problem("error", where("base"), f"base: {exc}", "change 'base'")
            )
    if source is not None:
        found = validation.validate(source, folder=folder)
        checked.problems += found.problems
        checked.subjects = found.subjects
    if checked.base is not None:
        checked.job = resolve_job(job, checked.base)
        subjects = [one.subject for one in checked.subjects]
        checked.problems += names.check_names(checked.job, checked.base, subjects)
    return checked


def _why_no_folder(storage: str) -> str | None:
    """Say why results cannot be put here, as far as this machine can tell without writing."""
    if "://" in storage:
        return None
    try:
        is_folder = stat.S_ISDIR(Path(storage).stat().st_mode)
    except FileNotFoundError:
        return None
    except OSError as exc:
        return f"{storage:.200} cannot be a folder: {exc.strerror}"
    return None if is_folder else f"{storage} is a file"


def resolve_job(job: Job, base: Base) -> Job:
    """Fill what the user left open with the recommendations of the base's makers."""
    sections: dict[str, Spec] = {}
    for name, model in (("recipe", Recipe), ("prior", Prior), ("previews", Previews)):
        section: Spec = getattr(job, name)
        recommended = dict(base.defaults.get(name, {}))
        chosen = section.model_dump(include=section.model_fields_set)
        sections[name] = model.model_validate(recommended | chosen)
    recipe = sections["recipe"]
    assert isinstance(recipe, Recipe)
    if recipe.resolution is None:
        sections["recipe"] = recipe.model_copy(update={"resolution": base.resolution})
    return job.model_copy(update=sections)
