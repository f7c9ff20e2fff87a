"""dbray: DreamBooth in bulk. Personalise text-to-image diffusion models for many subjects, on Ray.

>>> import dbray
>>> rex = dbray.Subject(id="rex", class_noun="dog", images="photos/rex")
>>> job = dbray.Job(base="base", subjects=[rex], storage="runs", recipe=dbray.Recipe(steps=4))
>>> result = dbray.run(job, dbray.RunOptions(max_failures=0))
>>> result.state, result.summary.counts["published"]
('finished', 1)

`dbray.run("job.yaml")` runs a job file. Everything that dbray refuses is raised as a `DbrayError`;
mistakes in a job are a `SpecError`, which lists all of them. Importing this package is light: torch
and Ray are loaded when a job runs.
"""

from __future__ import annotations

import os
from importlib import metadata
from typing import TYPE_CHECKING

from dbray.errors import DbrayError, SpecError

# The package dbray.run has to be imported before the function `run` below takes its name here.
from dbray.run.options import RunOptions
from dbray.spec.job import Job
from dbray.spec.sections import Identifiers, Previews, Prior, Recipe, Resources
from dbray.spec.subject import Subject

if TYPE_CHECKING:
    from dbray.run.job import JobResult

__version__ = metadata.version("dbray")

__all__ = [
    "DbrayError",
    "Identifiers",
    "Job",
    "Previews",
    "Prior",
    "Recipe",
    "Resources",
    "RunOptions",
    "SpecError",
    "Subject",
    "__version__",
    "run",
]


def run(job: Job | str | os.PathLike[str], options: RunOptions | None = None) -> JobResult:
    """Run a job, or the job file at a path, and wait for it. Running it again continues it.

    Raises:
        SpecError: everything that is wrong with the job; nothing ran.
        JobBusy: another run holds this job.
        DbrayError: the run broke off; what was published stays.
    """
    from dbray.run.job import run_job

    return run_job(job if isinstance(job, Job) else os.fspath(job), options)
