"""Does a subject keep its looks in new places, and its class its variety? By the judge's eyes.

    python benchmarks/identity.py [--subjects 6] [--judge build/miniature/judge.pt] [--keep]
    python benchmarks/identity.py --recipe '{method: lora, learning_rate: 0.002}'

Runs the main job on drawn subjects by the base's recommended recipe, or with fields of another,
and samples each published model in all places of the drawn world. `colour`, `class` and `place`
are the shares of its images that show the subject's colour, its class noun and the place that was
asked for. `drift` is how much more often than the base the model gives the subject's colour to
others of its class. The judge (see `miniature.py`) was trained on renders alone. `-o` keeps a sheet
to look at.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import finish, print_table, write_subjects
from miniature import CPU, LABELS, Judge, train_judge
from PIL import Image

from dbray import bases
from dbray.bases import Backbone
from dbray.bases.generate import Sampling, generate
from dbray.method.methods import put
from dbray.miniature import world
from dbray.miniature.autoencoder import to_images
from dbray.miniature.captions import PLACE_PHRASES
from dbray.records.models import Registry
from dbray.spec.paths import MINIATURE
from dbray.spec.prompts import fill_prompt
from dbray.storage.store import Store

SAMPLING = Sampling(steps=25)
PER_PLACE = 2
PLACES = [place for place in world.PLACE_NAMES for _ in range(PER_PLACE)]


def sample(backbone: Backbone, name: str) -> np.ndarray:
    """Sample `name` in every place; the same seeds for everybody."""
    prompts = [f"a photo of {name} {PLACE_PHRASES[place][0]}" for place in PLACES]
    return generate(backbone, prompts, list(range(len(prompts))), SAMPLING)


@torch.no_grad()
def seen(judge: Judge, pixels: np.ndarray) -> dict[str, list[str]]:
    """Return the judge's answers to each question, one per image."""
    return {
        question: [LABELS[question][answer] for answer in logits.argmax(dim=1)]
        for question, logits in judge(to_images(pixels, CPU)).items()
    }


def share(answers: list[str], truth: str | list[str]) -> float:
    """Return the share of right answers."""
    truths = [truth] * len(answers) if isinstance(truth, str) else truth
    return statistics.mean(answer == right for answer, right in zip(answers, truths, strict=True))


def measure(registry: Registry, judge: Judge, sheet: list[np.ndarray]) -> dict[str, Any]:
    """Return the mean of each figure over the published models; add their images to the sheet."""
    base = bases.resolve(MINIATURE)
    backbone = bases.load(base)
    records = list(registry.list())
    before = {
        noun: seen(judge, sample(backbone, f"a {noun}"))["colour"]
        for noun in {record.class_noun for record in records}
    }
    found: dict[str, list[float]] = {name: [] for name in ("colour", "class", "place", "drift")}
    for record in records:
        noun, seed = record.class_noun, int(record.id.rpartition("-")[2])
        colour = world.subject_scenes(seed, noun)[0].identity.colour
        with tempfile.TemporaryDirectory() as folder:
            weights = registry.weights(record, Path(folder))
            put(backbone, record.recipe.method, weights)
        after = seen(judge, sample(backbone, f"a {noun}"))["colour"]
        pixels = sample(backbone, fill_prompt("a {subject}", noun, record.identifier))
        answers = seen(judge, pixels)
        found["colour"].append(share(answers["colour"], colour))
        found["class"].append(share(answers["class"], noun))
        found["place"].append(share(answers["place"], PLACES))
        found["drift"].append(share(after, colour) - share(before[noun], colour))
        photographs = [np.asarray(image) for image in world.subject(seed, noun, 4)]
        sheet.append(np.concatenate([*photographs, *pixels[::PER_PLACE]], axis=1))
    return {
        "num_models": len(sheet),
        "images_per_model": len(PLACES),
        **{name: round(statistics.mean(shares), 3) for name, shares in found.items()},
        "colour_by_model": [round(value, 3) for value in found["colour"]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", type=int, default=6)
    parser.add_argument("--class-nouns", type=int, default=3)
    parser.add_argument("--judge", type=Path, default=Path("build/miniature/judge.pt"))
    parser.add_argument("--recipe", default="{}", help="fields of the recipe, as YAML")
    parser.add_argument("-o", "--output", type=Path, help="write a sheet of images here (PNG)")
    parser.add_argument("--keep", action="store_true", help="keep the figures in results/")
    args = parser.parse_args()
    torch.set_num_threads(1)
    judge = train_judge(args.judge)
    with tempfile.TemporaryDirectory() as folder:
        photographs = Path(folder, "photos")
        write_subjects(photographs, args.subjects, args.class_nouns)
        Path(folder, "identity.yaml").write_text(
            f"base: miniature\nsubjects: photos\npreviews: {{prompts: []}}\nrecipe: {args.recipe}\n"
        )
        command = [sys.executable, "-m", "dbray", "run", f"{folder}/identity.yaml"]
        subprocess.run(command, check=True)
        sheet: list[np.ndarray] = []
        facts = measure(Registry(Store(f"{folder}/runs")), judge, sheet)
    if args.output:
        Image.fromarray(np.concatenate(sheet)).save(args.output)
    facts["recipe"] = args.recipe
    print_table(facts)
    finish("identity", facts, args.keep)


if __name__ == "__main__":
    main()
