"""Small worlds for tests: photographs, manifests and job files on disk, and their errors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from dbray.bases import Base
from dbray.errors import Problem
from dbray.planning.checks import check_job
from dbray.planning.plan import make_plan
from dbray.records.prior_sets import PriorPlan
from dbray.spec.job import Job
from dbray.storage.store import Store
from dbray.subjects.validation import Validation


def write_photos(folder: Path, subjects: dict[str, str], num_images: int = 3) -> None:
    """Write `folder/<id>/N.png` and class.txt; different subjects look different."""
    for subject_id, noun in subjects.items():
        rng = np.random.default_rng(sum(subject_id.encode()))
        (folder / subject_id).mkdir(parents=True)
        (folder / subject_id / "class.txt").write_text(noun)
        for number in range(num_images):
            pixels = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / subject_id / f"{number}.png")


def write_job(folder: Path, base: Path, subjects: dict[str, str], /, **changes) -> Path:
    """Write photographs and a job file that runs quickly on the tiny base; return the job file.

    `changes` are merged into the job, section by section.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "photos").exists():
        write_photos(folder / "photos", subjects)
    job = {
        "base": str(base),
        "subjects": "photos",
        "recipe": {"steps": 8, "learning_rate": 1e-3},
        "prior": {"count": 6, "steps": 2},
        "previews": {"steps": 2, "prompts": ["a photo of {subject} on the beach", "a {class}"]},
        "resources": {"lanes": 1, "prior_actors": 1},
    }
    for name, value in changes.items():
        job[name] = {**job.get(name, {}), **value} if isinstance(value, dict) else value
    file = folder / "job.yaml"
    # Copied, so that a value which stands twice is written twice.
    file.write_text(yaml.safe_dump(json.loads(json.dumps(job))))
    return file


def load_job(folder: Path, base: Path, subjects: dict[str, str], /, **changes) -> Job:
    """Write a job and load it."""
    return Job.load(write_job(folder, base, subjects, **changes))


def add_class_images(job: Job) -> None:
    """Make the class images that a job lacks, without actors."""
    store = Store(job.storage)
    plan = make_plan(check_job(job).ready(), store)
    make_class_images(store, plan.base, plan.missing_priors)


def make_class_images(store: Store, base: Base, plans: Sequence[PriorPlan]) -> None:
    """Make class images in this process, as actors would: that saves the actors' start."""
    from dbray.sampling import priors

    actor = priors.PartActor(base, 1, store)
    for plan in plans:
        for part in range(plan.num_parts):
            actor.make(priors.task_of(plan, part))
    assert priors.make_priors(store, base, plans).num_images == 0  # it only publishes


def errors_of(validation: Validation) -> list[Problem]:
    """Return the problems that stop a job."""
    return [problem for problem in validation.problems if problem.severity == "error"]
