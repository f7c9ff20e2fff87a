"""How many subjects per hour? The main job on drawn subjects, with start-up, compared with a peer.

    python benchmarks/bulk.py [--peer PATH-TO-train_dreambooth.py] [--keep]
    python benchmarks/bulk.py --method lora --pack 8 --unpacked \
        [--peer PATH-TO-train_dreambooth_lora.py] [--keep]

The peer is the diffusers script of that name, run as its users do: one process per subject, on the
same base, photographs and settings. It is timed on a few subjects and extrapolated, because each
subject costs the same; on some before dbray and on the others after it, since machines change
their speed. The ceiling is also measured: only the steps, in a bare loop. With
`--unpacked`, the same job is also run with one subject at a time in each lane. Measure on an
otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from measure import finish, print_table, write_subjects
from steps import measure_steps, method_settings

from dbray import bases
from dbray.spec.recipe import Recipe

PRIOR = {"count": 64, "sampler": "ddpm", "steps": 50, "guidance": 7.5}
LEARNING_RATE = {"full": 1e-4, "lora": 1e-3}
RESOLUTION = 64
_OF_LORA_PEER = {"image_interpolation_mode": "bilinear"}  # as the other script has it
# The script imports torchvision, which may not be installed: these are the parts that it uses.
_TRANSFORMS = """
import enum
import random

import numpy as np
import torch
from PIL import Image


class InterpolationMode(enum.Enum):
    BILINEAR = Image.Resampling.BILINEAR


class Compose(list):
    def __call__(self, image):
        for transform in self:
            image = transform(image)
        return image


class Resize:
    def __init__(self, size, interpolation=InterpolationMode.BILINEAR):
        self.size, self.interpolation = size, interpolation

    def __call__(self, image):
        scale = self.size / min(image.size)
        size = tuple(round(side * scale) for side in image.size)
        return image.resize(size, self.interpolation.value)


class RandomCrop:
    def __init__(self, size):
        self.size = size

    def corner(self, room):
        return random.randint(0, room)

    def __call__(self, image):
        left, top = (self.corner(side - self.size) for side in image.size)
        return image.crop((left, top, left + self.size, top + self.size))


class CenterCrop(RandomCrop):
    def corner(self, room):
        return room // 2


class ToTensor:
    def __call__(self, image):
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


class Normalize:
    def __init__(self, mean, std):
        self.mean, self.std = mean[0], std[0]

    def __call__(self, tensor):
        return (tensor - self.mean) / self.std
"""

# The libraries check for torchvision before the stand-in exists, or they would use more of it.
_RUNNER = """
import runpy
import sys

import diffusers.utils
import transformers.utils

transformers.utils.is_torchvision_available()
sys.path.insert(0, sys.argv[1])
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def recipe_of(args: argparse.Namespace) -> dict[str, Any]:
    """The recipe of the job, as in a job file."""
    return {
        "method": method_settings(args),
        "steps": args.steps,
        "precision": args.precision,
        "learning_rate": LEARNING_RATE[args.method],
        "min_snr_gamma": None,  # the peer weights all timesteps equally
    }


def measure_dbray(folder: Path, args: argparse.Namespace, pack: int | str) -> dict[str, Any]:
    """Run the main job in a separate process."""
    name = f"pack-{pack}"
    job = {
        "base": "miniature",
        "subjects": "photos",
        "storage": f"runs-{name}",
        "recipe": recipe_of(args),
        "prior": PRIOR,
        "previews": {"prompts": []},  # the peer has neither
        "scoring": {"embedder": None, "clip": None},
        "resources": {"pack": pack},
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(job))
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "dbray", "run", str(file)], check=True)
    wall = time.perf_counter() - start
    journal = folder / f"runs-{name}" / "jobs" / name
    summary = json.loads((journal / "summary.json").read_text())
    outcomes = [json.loads(line) for line in (journal / "results.jsonl").read_text().splitlines()]
    if summary["counts"]["published"] != args.subjects:
        raise SystemExit(f"only {summary['counts']} of {args.subjects} were published")
    timings = [outcome["timings"] for outcome in outcomes]
    overheads = [sum(one.values()) - one["train"] for one in timings]
    chosen = journal / "pack.json"
    return {
        "pack": json.loads(chosen.read_text())["num_slots"] if chosen.exists() else pack,
        "wall_seconds": round(wall, 1),
        "subjects_per_hour": round(args.subjects / wall * 3600, 1),
        "phase_seconds": summary["phase_seconds"],
        "lanes": summary["lanes"],
        # In a pack, each subject has its share of the time of a step.
        "steps_per_second_and_lane": round(
            args.steps / statistics.mean(one["train"] for one in timings), 2
        ),
        # A lane's first subject of a class noun also encodes the class images for all the others.
        "overhead_seconds_median": round(statistics.median(overheads), 3),
        "overhead_seconds_mean": round(statistics.mean(overheads), 3),
        "overhead_seconds_max": round(max(overheads), 3),
        "prior_images": summary["prior_images"],
        "prior_images_per_second": summary["prior_images_per_second"],
    }


def measure_ceiling(lanes: int, pack: int, args: argparse.Namespace) -> dict[str, Any]:
    """Take only the steps: as many bare loops as there were lanes, without Ray and storage."""
    rate = measure_steps(Recipe.model_validate(recipe_of(args)), lanes, threads=1, num_slots=pack)
    return {
        "bare_steps_per_second_and_lane": round(rate, 2),
        "bare_subjects_per_hour": round(3600 * lanes * rate / args.steps, 1),
    }


class Peer:
    """The script, timed on a few subjects, and once with existing class images."""

    def __init__(self, folder: Path, args: argparse.Namespace) -> None:
        self._folder, self._args = folder, args
        self._subjects = sorted((folder / "photos").iterdir())[: args.peer_subjects]
        self._seconds: list[float] = []
        stand_in = folder / "stand-in" / "torchvision"
        stand_in.mkdir(parents=True)
        (stand_in / "__init__.py").write_text('__version__ = "0.0"\n')
        (stand_in / "transforms.py").write_text(_TRANSFORMS)

    def measure(self, upto: int | None = None) -> None:
        """Time the subjects that are left, up to this one."""
        self._seconds += map(self._run, self._subjects[len(self._seconds) : upto])

    def facts(self) -> dict[str, Any]:
        """All figures; measures the run with existing class images."""
        fresh, shared = self._seconds, self._run(self._subjects[0])
        return {
            "peer_seconds_per_subject": round(statistics.mean(fresh), 1),
            "peer_seconds": [round(seconds, 1) for seconds in fresh],
            "peer_seconds_with_class_images_at_hand": round(shared, 1),
            "peer_subjects_per_hour": round(3600 / statistics.mean(fresh), 1),
            "peer_subjects_per_hour_with_class_images_at_hand": round(3600 / shared, 1),
        }

    def _run(self, subject: Path) -> float:
        return run_peer(self._folder, self._args, subject, f"classes-{subject.name}")


def run_peer(folder: Path, args: argparse.Namespace, subject: Path, classes: str) -> float:
    """Run the script for one subject; return the seconds."""
    noun = (subject / "class.txt").read_text()
    photographs = folder / "peer-photos" / subject.name  # it opens every file as an image
    shutil.rmtree(photographs, ignore_errors=True)
    shutil.copytree(subject, photographs, ignore=shutil.ignore_patterns("class.txt"))
    options = {
        "pretrained_model_name_or_path": bases.resolve("miniature").folder,
        "instance_data_dir": photographs,
        "class_data_dir": folder / classes,
        "instance_prompt": f"a zwx {noun}",
        "class_prompt": f"a {noun}",
        "num_class_images": PRIOR["count"],
        "sample_batch_size": 16,
        "prior_loss_weight": 1.0,
        "resolution": RESOLUTION,
        "train_batch_size": 1,
        "max_train_steps": args.steps,
        "learning_rate": LEARNING_RATE[args.method],
        **(_OF_LORA_PEER | {"rank": args.rank} if args.method == "lora" else {}),
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "checkpointing_steps": 10 * args.steps,
        "mixed_precision": {"fp32": "no", "bf16": "bf16"}[args.precision],
        "seed": 0,
        "output_dir": folder / "peer-out" / subject.name,
    }
    command = [sys.executable, "-c", _RUNNER, str(folder / "stand-in"), args.peer]
    command += ["--with_prior_preservation"]
    command += [f"--{name}={value}" for name, value in options.items()]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the peer failed:\n{done.stderr[-3000:]}")
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", type=int, default=32)
    parser.add_argument("--class-nouns", type=int, default=2)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--method", choices=tuple(LEARNING_RATE), default="full")
    parser.add_argument("--rank", type=int, default=8)
    # The peer trains these alone.
    parser.add_argument("--targets", nargs="+", default=["attention"])
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--pack", type=_pack, default=1, help="a number, or auto")
    parser.add_argument("--unpacked", action="store_true", help="also run the job with pack 1")
    parser.add_argument("--peer", help="path to the script of diffusers for the method")
    parser.add_argument("--peer-subjects", type=int, default=4)
    parser.add_argument("--keep", action="store_true", help="keep the figures in results/")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        facts = measure(Path(folder), args)
    print_table(facts)
    name = "bulk" if args.method == "full" else f"bulk-{args.method}"
    finish(name if args.precision == "fp32" else f"{name}-{args.precision}", facts, args.keep)


def _pack(text: str) -> int | str:
    return text if text == "auto" else int(text)


def measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Measure dbray, the bare steps and the peer."""
    write_subjects(folder / "photos", args.subjects, args.class_nouns)
    script = Peer(folder, args) if args.peer else None
    if script:
        script.measure(upto=args.peer_subjects // 2)
    facts: dict[str, Any] = {
        "method": args.method,
        "subjects": args.subjects,
        "class_nouns": args.class_nouns,
        "steps": args.steps,
        "precision": args.precision,
        "prior": PRIOR,
        **measure_dbray(folder, args, args.pack),
    }
    facts |= measure_ceiling(facts["lanes"], facts["pack"], args)
    share = facts["steps_per_second_and_lane"] / facts["bare_steps_per_second_and_lane"]
    facts["share_of_bare_steps"] = round(share, 3)
    ours = facts["subjects_per_hour"]
    if args.unpacked:
        unpacked = measure_dbray(folder, args, 1)
        facts |= {f"unpacked_{name}": value for name, value in unpacked.items()}
        facts["times_unpacked"] = round(ours / unpacked["subjects_per_hour"], 2)
    if script:
        script.measure()
        facts |= script.facts()
        peer, bare = facts["peer_subjects_per_hour"], facts["bare_subjects_per_hour"]
        facts["times_the_peer"] = round(ours / peer, 2)
        facts["times_the_peer_of_bare_steps"] = round(bare / peer, 2)
        at_hand = facts["peer_subjects_per_hour_with_class_images_at_hand"]
        facts["times_the_peer_with_class_images_at_hand"] = round(ours / at_hand, 2)
    return facts


if __name__ == "__main__":
    main()
