"""The paper's ablations on the miniature: draw the subjects, write their job, keep the results.

    python benchmarks/ablations.py FOLDER [--recipe '{method: pivotal}']
    dbray ablate prior FOLDER/job.yaml -o FOLDER/ablations --seeds 0,1,2
    python benchmarks/ablations.py FOLDER --keep prior

Twelve subjects of four class nouns, each with a description in the words of the miniature's
captions, so that prompting the untouched base has its best chance. Low-rank subjects are packed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import yaml
from measure import finish, hardware

from dbray.miniature import world
from dbray.miniature.world import Identity
from dbray.records.models import Registry
from dbray.storage.store import Store

NUM_SUBJECTS, NUM_CLASSES, NUM_PHOTOGRAPHS, SEED = 12, 4, 5, 1
FOLDER = Path("ablations")


def describe(identity: Identity) -> str:
    """Describe an identity: "yellow dog with brown spots"."""
    noun = f"{identity.colour} {identity.class_noun}"
    if identity.pattern in ("spots", "stripes"):
        return f"{noun} with {identity.second_colour} {identity.pattern}"
    return f"patched {noun}" if identity.pattern == "patch" else noun


def write(folder: Path, recipe: dict[str, Any], embedder: str, clip: str) -> Path:
    """Draw the photographs, and write the manifest and the job; returns the job file."""
    photos = folder / "photos"
    drawn = world.write_photographs(photos, NUM_SUBJECTS, NUM_CLASSES, SEED, NUM_PHOTOGRAPHS)
    lines = []
    for index, (name, noun) in enumerate(drawn):
        identity = world.subject_scenes(SEED * 100_003 + index, noun, NUM_PHOTOGRAPHS)[0].identity
        lines.append({"id": name, "class_noun": noun, "images": f"photos/{name}",
                      "description": describe(identity)})  # fmt: skip
    manifest = folder / "subjects.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    scoring = {"embedder": embedder, "clip": clip}
    job = {"id": "ablations", "base": "miniature", "subjects": manifest.name, "recipe": recipe,
           "scoring": scoring, "resources": {"pack": "auto"}}  # fmt: skip
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(job, sort_keys=False))
    return file


def read(folder: Path, name: str) -> dict[str, Any]:
    """Read the results of an ablation, with the recipe and the versions of its models."""
    job = yaml.safe_load((folder / "job.yaml").read_text())
    found = json.loads((folder / "ablations" / name / "ablation.json").read_text())
    record = next(iter(Registry(Store(str(folder / "ablations" / "runs"))).list()))
    return {"recipe": job["recipe"], "versions": dict(record.versions), **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    parser.add_argument("--embedder", default="miniature-vit")
    parser.add_argument("--clip", default="miniature-clip")
    parser.add_argument("--recipe", default="{}", help="its fields, as YAML")
    parser.add_argument("--keep", metavar="NAME", nargs="+", help="keep results of ablations")
    parser.add_argument("--hardware", help="where they ran, if elsewhere")
    args = parser.parse_args()
    for name in args.keep or ():
        facts = read(args.folder, name)
        finish(f"ablation-{name}", facts | {"hardware": args.hardware or hardware()}, keep=True)
    if not args.keep:
        print(write(args.folder, yaml.safe_load(args.recipe), args.embedder, args.clip))


if __name__ == "__main__":
    main()
