"""How good is the miniature cascade? The judge of `miniature.py`, on what both stages draw.

The judge's accuracy on renders with fine detail is the ceiling. The second stage is also measured
alone: the fine band of its super-resolution of true small pictures, against that of the truth,
beside plain enlargement.

    python benchmarks/cascade.py [--weights FOLDER] [--folder FOLDER] [--keep]
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import finish, print_table
from miniature import (
    FRESH_SEED,
    LABELS,
    labels_of,
    make_prompts,
    photographed,
    score,
    train_judge,
    truth_of,
)

from dbray.bases import MINIATURE_FOLDER
from dbray.miniature.autoencoder import to_images
from dbray.miniature.captions import fine_caption
from dbray.miniature.pixels.bands import fine_error
from dbray.miniature.pixels.data import small_images
from dbray.miniature.pixels.drawing import Cascade, Drawing, to_bytes
from dbray.miniature.pixels.training import enlarge
from dbray.miniature.world import Scene, render, scenes

CPU = torch.device("cpu")
TARGETS = {"class": 0.95, "place": 0.95}
BATCH = 16


def fresh_scenes(count: int) -> list[Scene]:
    return [photographed(scene) for scene in itertools.islice(scenes(FRESH_SEED), count)]


def draw(cascade: Cascade, texts: list[str], how: Drawing) -> np.ndarray:
    """Return one large picture per prompt, each from its own seed."""
    starts = range(0, len(texts), BATCH)
    parts = [
        cascade.draw(part := texts[start : start + BATCH], range(start, start + len(part)), how)[1]
        for start in starts
    ]
    return np.concatenate(parts)


def super_resolution_errors(cascade: Cascade, how: Drawing, count: int) -> dict[str, float]:
    """Return the fine band's error of enlarged true small pictures, both ways."""
    rng = np.random.default_rng(0)
    drawn = fresh_scenes(count)
    truths = np.stack([np.asarray(render(scene, fine=True)) for scene in drawn])
    small = small_images(to_images(truths, CPU))
    texts = [fine_caption(scene, rng) for scene in drawn]
    return {
        "fine_error_enlarged": float(fine_error(to_bytes(enlarge(small)), truths).mean()),
        "fine_error_super_resolution": float(
            fine_error(cascade.refine(small, texts, range(count), how), truths).mean()
        ),
    }


def latency(cascade: Cascade, how: Drawing) -> float:
    """Return the seconds of four images through both stages, after a warm-up."""
    texts = ["a red dog on the beach"] * 4
    cascade.draw(texts, range(4), Drawing(steps=(1, 1)))
    start = time.perf_counter()
    cascade.draw(texts, range(4), how)
    return time.perf_counter() - start


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure everything, and print each result."""
    torch.set_num_threads(options.threads)
    how = Drawing(
        (options.steps, options.second_steps),
        (options.guidance, options.second_guidance),
        options.noise_level,
    )
    judge = train_judge(options.folder / "judge.pt")
    drawn = fresh_scenes(500)
    pixels = np.stack([np.asarray(render(scene, fine=True)) for scene in drawn])
    labels = np.asarray([truth_of(scene) for scene in drawn])
    result: dict[str, Any] = {
        "num_prompts": options.num_prompts,
        "steps": list(how.steps),
        "guidance": list(how.guidance),
        "noise_level": how.noise_level,
        "threads": options.threads,
        "judge": score(judge, pixels, labels),
    }
    print("judge on fresh renders", result["judge"], flush=True)
    cascade = Cascade(options.weights)
    result["four_images_seconds"] = latency(cascade, how)
    result |= super_resolution_errors(cascade, how, 32)
    prompts = make_prompts(options.num_prompts)
    pictures = draw(cascade, [prompt.text for prompt in prompts], how)
    result["generated"] = score(judge, pictures, labels_of(prompts))
    np.save(options.folder / "cascade.npy", pictures)
    return result


def rows_of(result: dict[str, Any]) -> dict[str, Any]:
    """Return the figures for printing: a row each, shares with their ceiling and target."""
    rows = {name: value for name, value in result.items() if name not in ("judge", "generated")}
    for question in LABELS:
        ceiling, target = result["judge"][question], TARGETS.get(question, "none")
        share = result["generated"][question]
        rows[f"{question} right"] = f"{share:.3f} (renders {ceiling:.3f}, target {target})"
    return rows


def main() -> None:
    how = Drawing()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-prompts", type=int, default=256)
    parser.add_argument("--steps", type=int, default=how.steps[0])
    parser.add_argument("--second-steps", type=int, default=how.steps[1])
    parser.add_argument("--guidance", type=float, default=how.guidance[0])
    parser.add_argument("--second-guidance", type=float, default=how.guidance[1])
    parser.add_argument("--noise-level", type=int, default=how.noise_level)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--weights", type=Path, default=MINIATURE_FOLDER.with_name("cascade"))
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("build/miniature"),
        help="where the judge is kept between runs (default: build/miniature)",
    )
    parser.add_argument("--keep", action="store_true", help="keep the figures in results/")
    options = parser.parse_args()
    result = measure(options)
    print_table(rows_of(result))
    finish("cascade", result, options.keep)


if __name__ == "__main__":
    main()
