"""Are planted faults found, and good models left alone? Do the scores agree with the truth?

    python benchmarks/faults.py [--judge build/miniature/judge.pt] [--folder FOLDER] [--keep]

Trains 20 drawn subjects of four class nouns into one registry: 12 as recommended, two with 20 times
the steps (copies), two without class images (forgotten), two on the photographs of a stranger of
their class (unlike), and two on each other's (confused). Then `dbray evaluate` scores all of them
against their own photographs. `found` lists the flags of each. `agreement` is the rank correlation,
over the models, of a score and what the judge sees in the same images: identity and the subject's
colour, followed prompts and the place asked for. The judge (see `miniature.py`) was trained on
renders only. With `--folder`, an interrupted benchmark is continued.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from identity import seen, share
from measure import finish, print_table
from miniature import Judge, train_judge
from PIL import Image

from dbray.miniature import world
from dbray.miniature.captions import PLACE_PHRASES
from dbray.records import evaluations
from dbray.records.evaluations import Evaluated
from dbray.run.evaluation import EvaluationOptions, run_evaluation
from dbray.spec.suites import Suite
from dbray.storage.store import Store

NUM_GOOD, NUM_CLASSES, NUM_DRAWN = 12, 4, 23
PLACES = ("beach", "snow", "jungle", "city")
IMAGES = 4
LONG, FORGETFUL, MISLED = (12, 13), (14, 15), {16: 20, 17: 21, 18: 22, 22: 18}
"""Places of subjects in the drawn list; of the misled, whose photographs they are trained on."""
PLANTED = {12: "copies", 13: "copies", 14: "forgotten", 15: "forgotten", 16: "unlike",
           17: "unlike", 18: "confused", 22: "confused"}  # fmt: skip


def jobs_of(steps: int) -> dict[str, tuple[dict[int, int], dict[str, Any]]]:
    """Of each job, whose photographs each subject is trained on, and fields of the recipe."""
    return {
        "good": ({one: one for one in range(NUM_GOOD)}, {}),
        "long": ({one: one for one in LONG}, {"steps": 20 * steps}),
        "forgetful": ({one: one for one in FORGETFUL}, {"prior_weight": 0.0}),
        "misled": (MISLED, {}),
    }


def write_job(
    folder: Path, name: str, photographs: dict[str, tuple[str, str]], recipe: dict[str, Any]
) -> Path:
    """Write a job on the folder's photographs: of each subject, its noun and whose they are."""
    subjects = [{"id": subject, "class_noun": noun, "images": f"photos/{source}"}
                for subject, (noun, source) in photographs.items()]  # fmt: skip
    job = {"id": name, "base": "miniature", "subjects": subjects, "storage": "runs",
           "recipe": recipe, "resources": {"pack": "auto"}, "previews": {"prompts": []},
           "scoring": {"embedder": None, "clip": None}}  # fmt: skip
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(job, sort_keys=False))
    return file


def train(folder: Path, recipe: dict[str, Any]) -> Path:
    """Run the jobs; return a job file that lists every model with its own photographs."""
    drawn = world.write_photographs(folder / "photos", NUM_DRAWN, NUM_CLASSES, seed=0)
    whole: dict[str, tuple[str, str]] = {}
    for name, (sources, changes) in jobs_of(recipe["steps"]).items():
        of_job = {drawn[one][0]: (drawn[one][1], drawn[of][0]) for one, of in sources.items()}
        file = write_job(folder, name, of_job, recipe | changes)
        subprocess.run([sys.executable, "-m", "dbray", "run", str(file)], check=True)
        whole |= {subject: (noun, subject) for subject, (noun, _) in of_job.items()}
    return write_job(folder, "whole", whole, recipe)


def evaluate(job: Path) -> list[Evaluated]:
    """Score all models, beside the job."""
    prompts = tuple(f"a photo of a {{subject}} {PLACE_PHRASES[place][0]}" for place in PLACES)
    scoring = {"images": IMAGES, "embedder": "miniature-vit", "clip": "miniature-clip"}
    options = EvaluationOptions(Suite("places", prompts, prompts), "places", scoring)
    return list(run_evaluation(str(job), str(job.parent / "evaluation"), options).found)


def look(folder: Path, found: list[Evaluated], judge: Judge) -> pd.DataFrame:
    """Return the scores of each model beside what the judge sees in the same images."""
    store = Store(str(folder / "evaluation"))
    asked = [place for place in PLACES for _ in range(IMAGES)]
    rows = []
    for one in found:
        seed = int(one.id.rpartition("-")[2])
        colour = world.subject_scenes(seed, one.class_noun)[0].identity.colour
        images = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
                  for data in evaluations.read_images(store, one.name)]  # fmt: skip
        answers = seen(judge, np.stack(images))
        rows.append({"identity": one.scores.identity, "followed": one.scores.followed,
                     "colour": share(answers["colour"], colour),
                     "place": share(answers["place"], asked)})  # fmt: skip
    return pd.DataFrame(rows)


def rank_correlation(one: pd.Series, other: pd.Series) -> float:
    """Spearman's correlation; ties have their mean rank."""
    return round(float(one.rank().corr(other.rank())), 3)


def summarise(found: list[Evaluated], beside: pd.DataFrame) -> dict[str, Any]:
    """Compare the flags with the faults."""
    kinds = {one.id: [flag.kind for flag in one.flags] for one in found}
    planted = {one.id: PLANTED.get(int(one.id.rpartition("-")[2])) for one in found}
    hits: dict[str, list[bool]] = defaultdict(list)
    for subject, fault in planted.items():
        if fault:
            hits[fault].append(fault in kinds[subject])
    good = [subject for subject, fault in planted.items() if fault is None]
    scores = {one.id: one.scores.model_dump(exclude_none=True) for one in found}
    return {
        "faults_found": {fault: f"{sum(all_)} of {len(all_)}" for fault, all_ in hits.items()},
        "good_flagged": f"{sum(bool(kinds[one]) for one in good)} of {len(good)}",
        "agreement": {
            "identity, colour": rank_correlation(beside["identity"], beside["colour"]),
            "followed, place": rank_correlation(beside["followed"], beside["place"]),
        },
        "found": {one: {"planted": planted[one], "flags": kinds[one]} for one in kinds},
        "scores": {one: {name: round(value, 3) for name, value in of.items()}
                   for one, of in scores.items()},
    }  # fmt: skip


def measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Train, evaluate and compare, in a folder."""
    judge = train_judge(args.judge)
    job = train(folder, {"steps": args.steps, **yaml.safe_load(args.recipe)})
    found = evaluate(job)
    return summarise(found, look(folder, found, judge))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="{method: pivotal}", help="its fields, as YAML")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--judge", type=Path, default=Path("build/miniature/judge.pt"))
    parser.add_argument("--folder", type=Path, help="work here; absent: in a temporary folder")
    parser.add_argument("--keep", action="store_true", help="keep the figures in results/")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        facts = measure(folder.resolve(), args)
    print_table(facts)
    finish("faults", {"recipe": args.recipe, "steps": args.steps, **facts}, args.keep)


if __name__ == "__main__":
    main()
