"""dbray: DreamBooth in bulk. Personalise text-to-image diffusion models for many subjects, on Ray.

    job = dbray.Job.load("job.yaml")
    result = dbray.run(job)

Importing this package is light: torch and ray are loaded when a job runs.
"""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

from dbray.errors import DbrayError
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
    "Subject",
    "__version__",
    "run",
]


def run(job: Job) -> JobResult:
    """Carry out a job and wait for it. See `dbray.run.job.run_job` for the options."""
    from dbray.run.job import run_job

    return run_job(job)
