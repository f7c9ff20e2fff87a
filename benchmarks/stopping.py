"""What does stopping early save, and what does it cost? Paired, on subjects of the drawn world.

    python benchmarks/stopping.py [--subjects 32] [--recipe '{method: lora}'] [--keep]

Trains the same subjects twice on the same class images, with all steps of the recipe and with
`stop`, and scores both on prompts and seeds that stopping does not see. `speed_up` is how many
times as many subjects an hour a lane publishes, by the seconds from lease to publication, the
measurements included. Differences are those with `stop` minus those without. Intervals are of
95 %, by bootstrap over subjects.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from measure import finish, print_table, write_subjects

from dbray.records import scores
from dbray.records.models import Registry
from dbray.records.record import ModelRecord
from dbray.records.scores import Scores
from dbray.storage.store import Store

PROMPTS = [f"a photo of a {{subject}} {place}" for place in (
    "on the beach", "in the snow", "in the jungle", "in the city")]  # fmt: skip
SEED = 1
FIGURES = ("identity", "drift", "preservation", "diversity")
NUM_RESAMPLES = 10_000

Run = dict[str, tuple[ModelRecord, Scores]]
"""Record and scores of each model, by subject."""


def train(folder: Path, name: str, recipe: dict[str, Any], embedder: str) -> Run:
    """Run one job on the photographs in the folder, with one lane; return what it published."""
    job = {
        "base": "miniature", "subjects": "photos", "storage": name, "recipe": recipe,
        "previews": {"prompts": []}, "resources": {"lanes": 1},
        "scoring": {"embedder": embedder, "prompts": PROMPTS, "seed": SEED},
    }  # fmt: skip
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(job))
    subprocess.run([sys.executable, "-m", "dbray", "run", str(file)], check=True)
    store = Store(str(folder / name))
    found = {record.id: (record, scores.read(store, record.name))
             for record in Registry(store).list()}  # fmt: skip
    return {subject: (record, one) for subject, (record, one) in found.items() if one is not None}


def seconds_of(record: ModelRecord) -> float:
    """Return the time from lease to publication."""
    return sum(record.timings.values())


def interval(values: np.ndarray, statistic: Callable[..., Any] = np.mean) -> dict[str, Any]:
    """Return a statistic of rows of subjects, and its interval of 95 %."""
    rng = np.random.default_rng(0)
    drawn = values[rng.integers(0, len(values), (NUM_RESAMPLES, len(values)))]
    low, high = np.percentile([statistic(one, axis=0) for one in drawn], [2.5, 97.5])
    return {"mean": round(float(statistic(values, axis=0)), 4),
            "interval": [round(float(low), 4), round(float(high), 4)]}  # fmt: skip


def ratio(pairs: np.ndarray, axis: int) -> float:
    """Return the ratio of the sums of two columns."""
    first, second = pairs.sum(axis=axis)
    return first / second


def compare(fixed: Run, stopped: Run) -> dict[str, Any]:
    """Compare the runs, subject by subject."""
    subjects = sorted(fixed.keys() & stopped.keys())
    pairs = [(fixed[one], stopped[one]) for one in subjects]
    taken = np.array([[seconds_of(a), seconds_of(b)] for (a, _), (b, _) in pairs])
    facts: dict[str, Any] = {
        "num_subjects": len(subjects),
        "subjects_per_hour": {
            "fixed": round(3600 / float(taken[:, 0].mean()), 1),
            "stop": round(3600 / float(taken[:, 1].mean()), 1),
        },
        "speed_up": interval(taken, ratio),
        "share_of_measuring": round(
            sum(b.timings["fidelity"] for _, (b, _) in pairs) / float(taken[:, 1].sum()), 3
        ),
        "steps": {
            "fixed": pairs[0][0][0].steps,
            "taken": interval(np.array([b.fidelity[-1][0] for _, (b, _) in pairs])),
            "published": interval(np.array([b.steps for _, (b, _) in pairs])),
        },
        "ceiling": round(float(np.mean([a.ceiling for (_, a), _ in pairs])), 4),
        "base_identity": round(float(np.mean([a.base_identity for (_, a), _ in pairs])), 4),
    }
    for name in FIGURES:
        values = np.array([[getattr(a, name), getattr(b, name)] for (_, a), (_, b) in pairs])
        facts[name] = {
            "fixed": interval(values[:, 0]),
            "stop": interval(values[:, 1]),
            "difference": interval(values[:, 1] - values[:, 0]),
        }
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", type=int, default=32)
    parser.add_argument("--class-nouns", type=int, default=4)
    parser.add_argument("--recipe", default="{}", help="fields of the recipe, as YAML")
    parser.add_argument("--stop", default="{}", help="fields of recipe.stop, as YAML")
    parser.add_argument("--embedder", default="miniature-vit")
    parser.add_argument("--keep", action="store_true", help="keep the figures in results/")
    args = parser.parse_args()
    recipe, stop = yaml.safe_load(args.recipe), yaml.safe_load(args.stop)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_subjects(folder / "photos", args.subjects, args.class_nouns)
        fixed = train(folder, "fixed", recipe, args.embedder)
        if (folder / "fixed" / "priors").exists():
            shutil.copytree(folder / "fixed" / "priors", folder / "stop" / "priors")
        stopped = train(folder, "stop", recipe | {"stop": stop}, args.embedder)
    facts = compare(fixed, stopped)
    print_table(facts)
    asked = {"recipe": recipe, "stop": stop, "embedder": args.embedder}
    finish("stopping", facts | asked, args.keep)


if __name__ == "__main__":
    main()
