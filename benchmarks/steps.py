"""How many optimiser steps per second? A bare loop on random latents, without Ray and storage.

    python benchmarks/steps.py [--workers N] [--threads N] [--keep]

It is the ceiling for lanes: the same number of parallel processes, each with its own copy of the
base. Measure on an otherwise idle machine; on one GPU, with `--workers 1`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
from multiprocessing.synchronize import Barrier
from typing import Any

import torch
from measure import finish, print_table

from dbray import bases
from dbray.bases import Compute
from dbray.method.methods import method_of
from dbray.spec.paths import MINIATURE
from dbray.spec.sections import Recipe, Resources
from dbray.training.engine import make_engine
from dbray.training.loop import Latents, TrainingData, finetune

_WARM_STEPS = 20


def measure_steps(recipe: Recipe, num_workers: int, threads: int) -> float:
    """Return the mean steps per second of several processes that run at the same time."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(num_workers)
    results = context.SimpleQueue()
    workers = [
        context.Process(target=_work, args=(recipe, threads, barrier, results))
        for _ in range(num_workers)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise SystemExit("a worker failed; its error is printed above")
    return statistics.mean(results.get() for _ in workers)


def _work(recipe: Recipe, threads: int, barrier: Barrier, results: Any) -> None:
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = bases.load(bases.resolve(MINIATURE), Compute(str(device), recipe.precision))
    method = method_of(recipe.method)
    engine = make_engine(method.network(backbone, recipe), recipe, Resources(), device)
    schedule = backbone.schedule.to(device)
    data = TrainingData(
        subject_id="noise",
        views=_noise(4, backbone.latent_shape()),
        views_of_image=((0,), (1,), (2,), (3,)),
        instance=backbone.condition(["a zwx dog"] * 4),
        prior=_noise(64, backbone.latent_shape()),
        prior_prompt=backbone.condition(["a dog"]),
    )
    finetune(engine, schedule, data, recipe.model_copy(update={"steps": _WARM_STEPS}))
    barrier.wait()
    start = time.perf_counter()
    finetune(engine, schedule, data, recipe)  # reads the loss at its end, so the device is done
    results.put(recipe.steps / (time.perf_counter() - start))


def _noise(num_images: int, shape: tuple[int, ...]) -> Latents:
    return Latents(torch.randn(num_images, *shape), torch.full((num_images, *shape), 0.1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--keep", action="store_true", help="keep the figures in results/")
    args = parser.parse_args()
    recipe = Recipe(steps=args.steps, precision=args.precision, min_snr_gamma=None)
    rate = measure_steps(recipe, args.workers, args.threads)
    facts = {
        "workers": args.workers,
        "threads": args.threads,
        "steps": args.steps,
        "precision": args.precision,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "steps_per_second_and_worker": round(rate, 2),
    }
    print_table(facts)
    finish("steps", facts, args.keep)


if __name__ == "__main__":
    main()
