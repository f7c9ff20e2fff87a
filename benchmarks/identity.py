"""Does a subject keep its look in new places, and its class its variety? Measured by the judge.

    python benchmarks/identity.py [--subjects 6] [--judge build/miniature/judge.pt] [--keep]
    python benchmarks/identity.py --recipe '{method: lora, learning_rate: 0.002}'
    python benchmarks/identity.py --prior '{kind: teacher}'
    python benchmarks/identity.py --methods [-o docs/methods.png] [--keep]

Runs the main job on drawn subjects by the base's recommended recipe, or with fields of another,
and samples each published model in all places of the drawn world. `colour`, `class` and `place`
are the shares of its images that show the subject's colour, its class noun and the place in the
prompt. `drift` is how much more often than the base the model gives the subject's colour to others
of its class. `bytes` and `seconds` are those of one subject: its weight files, and the time from
lease to publication; `class_image_seconds` are those of the job (the first of several makes the
class images of all). The judge (see `miniature.py`) was trained on renders only. `--methods`
compares four methods on the same photographs. `-o` draws a sheet: a row per subject, with a
photograph and images of each method.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from measure import finish, print_table, write_subjects
from miniature import CPU, LABELS, Judge, train_judge
from PIL import Image, ImageDraw, ImageFont

from dbray import bases
from dbray.bases import Backbone
from dbray.bases.generate import Sampling, generate
from dbray.method.stages import put
from dbray.miniature import world
from dbray.miniature.autoencoder import to_images
from dbray.miniature.captions import PLACE_PHRASES
from dbray.records.models import Registry
from dbray.records.record import ModelRecord
from dbray.spec.paths import MINIATURE
from dbray.spec.prompts import fill_prompt
from dbray.storage.store import Store

SAMPLING = Sampling(steps=25)
PER_PLACE = 2
PLACES = [place for place in world.PLACE_NAMES for _ in range(PER_PLACE)]
SHARES = ("colour", "class", "place", "drift")
SHOWN = 3
"""Images of each method and subject on the sheet."""
METHODS = {
    "full": "{method: full}",
    "lora": "{method: {kind: lora, rank: 16}}",
    "pivotal": "{method: {kind: pivotal, rank: 16}}",
    "textual inversion": "{method: textual_inversion}",
}
"""Fields of the recipe of each method, as YAML."""


def sample(backbone: Backbone, name: str, sampling: Sampling = SAMPLING) -> np.ndarray:
    """Sample `name` in every place, always with the same seeds."""
    prompts = [f"a photo of {name} {PLACE_PHRASES[place][0]}" for place in PLACES]
    return generate(backbone, prompts, list(range(len(prompts))), sampling)


@torch.no_grad()
def seen(judge: Judge, pixels: np.ndarray) -> dict[str, list[str]]:
    """Return the judge's answers to each question, one per image."""
    return {
        question: [LABELS[question][answer] for answer in logits.argmax(dim=1)]
        for question, logits in judge(to_images(pixels, CPU)).items()
    }


def share(answers: list[str], truth: str | list[str]) -> float:
    """Return the share of correct answers."""
    truths = [truth] * len(answers) if isinstance(truth, str) else truth
    return statistics.mean(answer == right for answer, right in zip(answers, truths, strict=True))


def measure(
    registry: Registry,
    judge: Judge,
    images: list[np.ndarray],
    backbone: Backbone,
    sampling: Sampling = SAMPLING,
) -> dict[str, Any]:
    """Return the mean of each figure over the published models; add the images of each.

    `backbone` is the untouched base.
    """
    records = list(registry.list())
    before = {
        noun: seen(judge, sample(backbone, f"a {noun}", sampling))["colour"]
        for noun in {record.class_noun for record in records}
    }
    found: dict[str, list[float]] = {name: [] for name in (*SHARES, "bytes", "seconds")}
    for record in records:
        noun, seed = record.class_noun, number_of(record)
        colour = world.subject_scenes(seed, noun)[0].identity.colour
        with tempfile.TemporaryDirectory() as folder:
            files = registry.weights(record, Path(folder))
            found["bytes"].append(sum(file.stat().st_size for file in files.values()))
            put(backbone, record, files)
        after = seen(judge, sample(backbone, f"a {noun}", sampling))["colour"]
        pixels = sample(backbone, fill_prompt("a {subject}", noun, record.identifier), sampling)
        answers = seen(judge, pixels)
        found["colour"].append(share(answers["colour"], colour))
        found["class"].append(share(answers["class"], noun))
        found["place"].append(share(answers["place"], PLACES))
        found["drift"].append(share(after, colour) - share(before[noun], colour))
        found["seconds"].append(sum(record.timings.values()))
        images.append(pixels)
    return {
        "num_models": len(records),
        "images_per_model": len(PLACES),
        **{name: round(statistics.mean(shares), 3) for name, shares in found.items()},
        "colour_by_model": [round(value, 3) for value in found["colour"]],
    }


def number_of(record: ModelRecord) -> int:
    """Return the seed of a drawn subject, which its id ends with."""
    return int(record.id.rpartition("-")[2])


def train(folder: Path, recipe: str, prior: str) -> Registry:
    """Run one job on the photographs in the folder; return its registry.

    The class images of the folder's first job serve all of them.
    """
    is_full = yaml.safe_load(recipe).get("method", "full") == "full"
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", dir=folder, delete=False) as job:
        storage = Path(job.name).stem
        job.write(
            f"base: miniature\nsubjects: photos\nstorage: {storage}\n"
            f"previews: {{prompts: []}}\nrecipe: {recipe}\nprior: {prior}\n"
            "scoring: {embedder: null, clip: null}\n"  # the judge scores them
            f"resources: {{pack: {1 if is_full else 'auto'}}}\n"
        )
    shared, own = folder / "priors", folder / storage / "priors"
    if shared.exists():
        shutil.copytree(shared, own)
    subprocess.run([sys.executable, "-m", "dbray", "run", job.name], check=True)
    if own.exists() and not shared.exists():
        shutil.copytree(own, shared)
    return Registry(Store(str(folder / storage)))


def class_image_seconds(registry: Registry) -> float:
    """Return how long the class images of the registry's one job took."""
    [job] = registry.store.names("jobs")
    phases = registry.store.read_json(f"jobs/{job}/summary.json")["phase_seconds"]
    return round(phases.get("class images", 0.0), 1)


def draw_sheet(records: list[ModelRecord], images: dict[str, list[np.ndarray]]) -> Image.Image:
    """Draw a row per subject: a photograph, and images of each recipe in the same places."""
    side, gap, title = 2 * world.SIZE, 8, 24
    columns = 1 + SHOWN * len(images)
    width = columns * side + gap * len(images)
    sheet = Image.new("RGB", (width, title + side * len(records)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    draw.text((2, 4), "photograph", fill="black", font=font)
    for row, record in enumerate(records):
        [photograph] = world.subject(number_of(record), record.class_noun, 1)
        sheet.paste(photograph.resize((side, side)), (0, title + row * side))
        for column, (name, of_recipe) in enumerate(images.items()):
            left = side + gap + column * (SHOWN * side + gap)
            draw.text((left + 2, 4), name, fill="black", font=font)
            for index, pixels in enumerate(of_recipe[row][:: PER_PLACE * 4][:SHOWN]):
                image = Image.fromarray(pixels).resize((side, side))
                sheet.paste(image, (left + index * side, title + row * side))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", type=int, default=6)
    parser.add_argument("--class-nouns", type=int, default=3)
    parser.add_argument("--judge", type=Path, default=Path("build/miniature/judge.pt"))
    parser.add_argument("--recipe", default="{}", help="fields of the recipe, as YAML")
    parser.add_argument("--prior", default="{}", help="fields of the prior, as YAML")
    parser.add_argument("--methods", action="store_true", help="compare four methods")
    parser.add_argument("-o", "--output", type=Path, help="write a sheet of images here (PNG)")
    parser.add_argument("--keep", action="store_true", help="keep the figures in results/")
    args = parser.parse_args()
    torch.set_num_threads(1)
    judge = train_judge(args.judge)
    recipes = METHODS if args.methods else {"recipe": args.recipe}
    facts: dict[str, Any] = {}
    images: dict[str, list[np.ndarray]] = {name: [] for name in recipes}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_subjects(folder / "photos", args.subjects, args.class_nouns)
        for name, recipe in recipes.items():
            registry = train(folder, recipe, args.prior)
            asked = {"recipe": recipe, "prior": args.prior,
                     "class_image_seconds": class_image_seconds(registry)}  # fmt: skip
            backbone = bases.load(bases.resolve(MINIATURE))
            facts[name] = measure(registry, judge, images[name], backbone) | asked
            print(f"\n{name}")
            print_table(facts[name])
        records = list(registry.list())
    if args.output:
        sheet = draw_sheet(records, images)
        sheet.quantize(256).save(args.output, optimize=True)
    if args.methods:
        finish("methods", facts, args.keep)
    else:
        finish("identity", facts["recipe"], args.keep)


if __name__ == "__main__":
    main()
