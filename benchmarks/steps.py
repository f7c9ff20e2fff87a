"""How many optimiser steps per second? A bare loop on random latents, without Ray and storage.

    python benchmarks/steps.py [--workers N] [--threads N] [--keep]
    python benchmarks/steps.py --method lora --pack 8 ...    # 8 subjects in the slots of one model

It is the ceiling for lanes: the same number of parallel processes, each with its own copy of the
base. With a pack, every subject's step counts. Measure on an otherwise idle machine; on one GPU,
with `--workers 1`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
from functools import partial
from multiprocessing.synchronize import Barrier
from typing import Any

import torch
from measure import finish, print_table

from dbray import bases
from dbray.bases import Compute
from dbray.method.methods import method_of
from dbray.spec.paths import MINIATURE
from dbray.spec.recipe import Recipe
from dbray.spec.resources import Resources
from dbray.training.data import Latents, TrainingData
from dbray.training.loop import Course
from dbray.training.pack import Pack, Slots, make_pack

_WARM_STEPS = 20


def measure_steps(recipe: Recipe, num_workers: int, threads: int, num_slots: int = 1) -> float:
    """Return the mean steps per second of several processes that run at the same time.

    A step of all slots counts as one of each.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(num_workers)
    results = context.SimpleQueue()
    workers = [
        context.Process(target=_work, args=(recipe, threads, num_slots, barrier, results))
        for _ in range(num_workers)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise SystemExit("a worker failed; its error is printed above")
    return statistics.mean(results.get() for _ in workers)


def _work(recipe: Recipe, threads: int, num_slots: int, barrier: Barrier, results: Any) -> None:
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = bases.load(bases.resolve(MINIATURE), Compute(str(device), recipe.precision))
    method = method_of(recipe.method)
    network = method.network(backbone, recipe, num_slots)
    slots = Slots(num_slots, partial(method.assign, network))
    pack = make_pack(network, recipe, Resources(), device, method.rates(network, recipe), slots)
    schedule = backbone.schedule.to(device)

    def courses(steps: int) -> dict[int, Course]:
        changed = recipe.model_copy(update={"steps": steps})
        return {slot: Course(_subject(slot), changed, schedule) for slot in range(num_slots)}

    def _subject(slot: int) -> TrainingData:
        return TrainingData(
            subject_id=f"noise-{slot}",
            views=_noise(4, backbone.latent_shape()),
            views_of_image=((0,), (1,), (2,), (3,)),
            instance=method.condition(backbone, recipe, ["a zwx dog"] * 4),
            prior=_noise(64, backbone.latent_shape()),
            prior_prompt=method.condition(backbone, recipe, ["a dog"]),
        )

    train(pack, courses(_WARM_STEPS))
    measured = courses(recipe.steps)
    barrier.wait()
    start = time.perf_counter()
    train(pack, measured)
    results.put(num_slots * recipe.steps / (time.perf_counter() - start))


def train(pack: Pack, courses: dict[int, Course]) -> None:
    """Take all steps; the loss is read at the end, so the device is done."""
    while not courses[0].is_over:
        pack.step(courses)
        for course in courses.values():
            course.advance()
    for course in courses.values():
        course.points()


def _noise(num_images: int, shape: tuple[int, ...]) -> Latents:
    return Latents(torch.randn(num_images, *shape), torch.full((num_images, *shape), 0.1))


def method_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The method of a recipe, from the options."""
    if args.method == "full":
        return {"kind": "full"}
    targets = {"targets": args.targets} if args.targets else {}
    return {"kind": "lora", "rank": args.rank, **targets}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--method", choices=("full", "lora"), default="full")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--targets", nargs="+", help="default: those of the base's family")
    parser.add_argument("--pack", type=int, default=1, help="slots of each worker")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--keep", action="store_true", help="keep the figures in results/")
    args = parser.parse_args()
    recipe = Recipe.model_validate({
        "method": method_settings(args), "steps": args.steps, "precision": args.precision,
        "min_snr_gamma": None,
    })  # fmt: skip
    rate = measure_steps(recipe, args.workers, args.threads, args.pack)
    facts = {
        "method": args.method,
        "pack": args.pack,
        "workers": args.workers,
        "threads": args.threads,
        "steps": args.steps,
        "precision": args.precision,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "steps_per_second_and_worker": round(rate, 2),
        "milliseconds_per_subject_and_step": round(1e3 / rate, 2),
    }
    print_table(facts)
    finish("steps" if args.pack == 1 else "steps-packed", facts, args.keep)


if __name__ == "__main__":
    main()
