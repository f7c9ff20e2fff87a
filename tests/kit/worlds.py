"""Small worlds for tests: photographs, manifests and job files on disk, and their errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from dbray.errors import Problem
from dbray.spec.job import Job
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
    file.write_text(yaml.safe_dump(job))
    return file


def load_job(folder: Path, base: Path, subjects: dict[str, str], /, **changes) -> Job:
    """Write a job and load it."""
    return Job.load(write_job(folder, base, subjects, **changes))


def errors_of(validation: Validation) -> list[Problem]:
    """Return the problems that stop a job."""
    return [problem for problem in validation.problems if problem.severity == "error"]
