"""dbray: DreamBooth in bulk. Personalise text-to-image diffusion models for many subjects, on Ray.

>>> import dbray
>>> rex = dbray.Subject(id="rex", class_noun="dog", images="photos/rex")
>>> job = dbray.Job(base="base", subjects=[rex], storage="runs", recipe=dbray.Recipe(steps=4))
>>> result = dbray.run(job, dbray.RunOptions(max_failures=0))
>>> result.state, result.summary.counts["published"]
('finished', 1)

`dbray.run("job.yaml")` runs a job file. Every error of dbray is a `DbrayError`; a `SpecError` lists
all mistakes in a job. Importing this package is fast: torch and Ray are loaded when a job runs.
"""

from __future__ import annotations

import os
from importlib import metadata
from typing import TYPE_CHECKING

from dbray.errors import DbrayError, SpecError

# Import the package dbray.run before the function `run` below replaces that name in this module.
from dbray.run.options import RunOptions
from dbray.spec.job import Job
from dbray.spec.recipe import Recipe
from dbray.spec.resources import Resources
from dbray.spec.sections import Identifiers, Previews, Prior
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
        SpecError: the job has mistakes; nothing ran.
        JobBusy: another run holds this job.
        DbrayError: the run failed; published models stay.
    """
    from dbray.run.job import run_job

    return run_job(job if isinstance(job, Job) else os.fspath(job), options)
