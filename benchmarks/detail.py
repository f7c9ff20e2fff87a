"""Does super-resolution keep a subject's fine detail? Figure 14 of the paper, on a drawn world.

    python benchmarks/detail.py [--subjects 8] [-o docs/detail.png] [--folder FOLDER] [--keep]

Runs `dbray ablate detail` on the miniature cascade: the second stage fine-tuned at low noise, at
the noise that its pipeline has by default, or not at all. Then each of them enlarges true small
pictures of its subject in places and poses that no photograph shows. `error` is that of the fine
band, which no small picture can hold, against the true large picture, as a share of the true band's
energy, on the pixels that the subject's fine detail changes: 0 is right, 1 is no better than no
detail, and wrong detail has up to 2. `enlarged` is plain bilinear enlargement. `the same, low
noise` is the untouched network at low noise, so that what fine-tuning does is seen apart from what
the noise does. Intervals are of 95 %, over subjects. The first stage takes few steps
(`--first-steps`), since it draws none of these pictures.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from identity import number_of
from measure import finish, print_table
from PIL import Image, ImageDraw, ImageFont

from dbray import bases
from dbray.ablate.intervals import Estimate, Values, difference, estimate
from dbray.bases.generate import Sampling
from dbray.bases.generate import finish as enlarge
from dbray.method.stages import put
from dbray.miniature import world
from dbray.miniature.pixels.bands import fine_error
from dbray.records.models import Registry
from dbray.records.record import ModelRecord
from dbray.spec.prompts import fill_prompt
from dbray.storage.store import Store
from dbray.training.data import shrunk

CASCADE = bases.MINIATURE_FOLDER.with_name("cascade")
NUM_CLASSES = 4
PLAIN, PLAIN_LOW, USUAL, LOW = "not fine-tuned", "the same, low noise", "usual noise", "low noise"
VARIANTS = (PLAIN, PLAIN_LOW, USUAL, LOW)
"""The second is no model of its own: it shows what the noise alone does."""
ENLARGED = "enlarged"
HELD_OUT_SEED = 77


def write_job(folder: Path, args: argparse.Namespace) -> Path:
    """Draw the photographs, and write the job."""
    drawn = world.write_photographs(folder / "photos", args.subjects, NUM_CLASSES, fine=True)
    subjects = [{"id": name, "class_noun": noun, "images": f"photos/{name}"}
                for name, noun in drawn]  # fmt: skip
    job = {"id": "detail", "base": str(CASCADE), "subjects": subjects,
           "recipe": {"steps": args.first_steps}, "prior": {"count": args.class_images},
           "super_resolution": {"recipe": yaml.safe_load(args.recipe)},
           "scoring": {"embedder": "miniature-vit", "images": 2}}  # fmt: skip
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(job, sort_keys=False))
    return file


def train(folder: Path, args: argparse.Namespace) -> Registry:
    """Carry out the ablation; return its registry."""
    job, output = write_job(folder, args), folder / "ablations"
    command = [sys.executable, "-m", "dbray", "ablate", "detail", str(job), "-o", str(output)]
    subprocess.run(command, check=True)
    return Registry(Store(str(output / "runs")))


def variants_of(registry: Registry) -> dict[str, dict[str, ModelRecord]]:
    """Return the record of each subject and variant."""
    found: dict[str, dict[str, ModelRecord]] = {}
    for record in (one for latest in registry.list() for one in registry.revisions(latest.id)):
        stage = record.super_resolution
        assert stage is not None
        variants = found.setdefault(record.id, {})
        if stage.train:
            variants[USUAL if stage.noise_level else LOW] = record
        else:
            low = stage.model_copy(update={"noise_level": 0})
            variants[PLAIN] = record
            variants[PLAIN_LOW] = record.model_copy(update={"super_resolution": low})
    return found


def held_out(record: ModelRecord, count: int) -> list[world.Scene]:
    """Return scenes of a subject that no photograph shows."""
    seed = number_of(record)
    identity = world.subject_scenes(seed, record.class_noun)[0].identity
    rng = np.random.default_rng([HELD_OUT_SEED, seed])
    places = rng.permutation(world.PLACE_NAMES)[:count]
    return [world.random_pose(rng, identity, str(place)) for place in places]


def drawn(scenes: list[world.Scene], fine: bool) -> np.ndarray:
    """Return the scenes as uint8 images N, H, W, 3."""
    return np.stack([np.asarray(world.render(scene, fine)) for scene in scenes])


def doubled(images: np.ndarray) -> np.ndarray:
    """Enlarge bilinearly."""
    sides = images.shape[2] * 2, images.shape[1] * 2
    return np.stack([
        np.asarray(Image.fromarray(image).resize(sides, Image.Resampling.BILINEAR))
        for image in images
    ])  # fmt: skip


def measure(
    registry: Registry, count: int
) -> tuple[dict[str, dict[str, list[float]]], list[list[np.ndarray]]]:
    """Return the errors of each variant and subject, and pictures for the sheet."""
    compute = bases.Compute("cpu", then=bases.Compute("cpu"))
    backbone = bases.load(bases.resolve(str(CASCADE)), compute)
    errors: dict[str, dict[str, list[float]]] = {name: {} for name in (ENLARGED, *VARIANTS)}
    rows = []
    for subject, records in variants_of(registry).items():
        scenes = held_out(records[LOW], count)
        truths = drawn(scenes, fine=True)
        where = (truths != drawn(scenes, fine=False)).any(axis=3)
        small = shrunk(truths, 2)
        pictures = {ENLARGED: doubled(small)}
        for name in VARIANTS:
            record = records[name]
            with tempfile.TemporaryDirectory() as folder:
                put(backbone, record, registry.weights(record, Path(folder)))
            sampling = Sampling().through(record.super_resolution)
            prompt = fill_prompt("a photo of a {subject}", record.class_noun, record.identifier)
            pictures[name] = enlarge(backbone, [prompt] * count, small, range(count), sampling)
        for name, images in pictures.items():
            errors[name][subject] = fine_error(images, truths, where).tolist()
        [photograph] = world.subject(number_of(records[LOW]),
                                     records[LOW].class_noun, 1, fine=True)  # fmt: skip
        rows.append([np.asarray(photograph), *(images[0] for images in pictures.values()),
                     truths[0]])  # fmt: skip
    return errors, rows


def draw_sheet(rows: list[list[np.ndarray]]) -> Image.Image:
    """Draw a row per subject: a photograph, what a small picture becomes, and the truth."""
    side, title = 3 * world.SIZE, 24
    heads = ("photograph", ENLARGED, *VARIANTS, "truth")
    sheet = Image.new("RGB", (side * len(heads), title + side * len(rows)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, head in enumerate(heads):
        draw.text((column * side + 4, 4), head, fill="black", font=font)
        for row, images in enumerate(rows):
            image = Image.fromarray(images[column]).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(image, (column * side, title + row * side))
    return sheet


def described(found: Estimate | None) -> dict[str, Any]:
    assert found is not None
    return {"mean": round(found.mean, 3), "half_width": round(found.half_width or 0.0, 3)}


def compare(errors: Mapping[str, Values]) -> dict[str, Any]:
    """Return the mean error of each variant, and paired differences."""
    pairs = ((USUAL, PLAIN), (LOW, USUAL), (LOW, PLAIN_LOW))
    low = errors[LOW]
    return {
        "num_subjects": len(low),
        "pictures_per_subject": len(next(iter(low.values()))),
        "error": {name: described(estimate(values)) for name, values in errors.items()},
        **{
            f"{name} - {other}": described(difference(errors[name], errors[other]))
            for name, other in pairs
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", type=int, default=8)
    parser.add_argument("--recipe", default="{}", help="fields of the second stage's, as YAML")
    parser.add_argument("--first-steps", type=int, default=1)
    parser.add_argument("--class-images", type=int, default=32)
    parser.add_argument("--pictures", type=int, default=8, help="held-out pictures a subject")
    parser.add_argument("--folder", type=Path, help="work here; absent: in a temporary folder")
    parser.add_argument("-o", "--output", type=Path, help="write a sheet of pictures here (PNG)")
    parser.add_argument("--keep", action="store_true", help="keep the figures in results/")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or Path(temporary)).resolve()
        errors, rows = measure(train(folder, args), args.pictures)
    if args.output:
        draw_sheet(rows).quantize(256).save(args.output, optimize=True)
    facts = compare(errors)
    print_table(facts)
    finish("detail", {"recipe": args.recipe, **facts}, args.keep)


if __name__ == "__main__":
    main()
