"""Does the variance that a cascade predicts fit after fine-tuning? Measured by the judge.

    python benchmarks/variance.py --registry FOLDER [--judge build/miniature/judge.pt] [--keep]

Fine-tuning changes the noise that the first stage predicts, and leaves the rows of its last layer
that predict the variance as they were. Every model of a registry of drawn subjects on the miniature
cascade is sampled in all places of the drawn world: by `ddpm` with that variance, by `ddpm` with
the fixed one ("fixed_small"), and by `dpm++`, which adds no noise. The second stage is the same
each time. `colour`, `class`, `place` and `drift` are those of `identity.py`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from identity import SHARES, measure
from measure import finish, print_table
from miniature import train_judge

from dbray import bases
from dbray.bases import Backbone, Compute
from dbray.bases.families.deepfloyd_if import CHANNELS
from dbray.bases.generate import Sampling
from dbray.records.models import Registry
from dbray.records.record import ModelRecord
from dbray.spec.sections import Previews
from dbray.storage.store import Store

CASCADE = bases.MINIATURE_FOLDER.with_name("cascade")
FIXED = "ddpm, fixed variance"
SAMPLERS = {"ddpm, its own variance": ("ddpm", 50), FIXED: ("ddpm", 50), "dpm++": ("dpm++", 20)}


def with_fixed_variance(backbone: Any) -> None:
    """Make a loaded base sample with the fixed variance, as one that predicts noise alone."""
    whole = backbone.denoise
    backbone.denoise = lambda *inputs: whole(*inputs)[:, :CHANNELS]
    backbone._noise_config = backbone._noise_config | {"variance_type": "fixed_small"}


def load(name: str, record: ModelRecord) -> tuple[Backbone, Sampling]:
    """Load the cascade, and how a way of sampling draws with it."""
    base = bases.resolve(str(CASCADE))
    backbone = bases.load(base, Compute.of("cpu", record.recipe, record.super_resolution))
    if name == FIXED:
        with_fixed_variance(backbone)
    sampler, steps = SAMPLERS[name]
    how = base.fill(Previews()).model_copy(update={"sampler": sampler, "steps": steps})
    return backbone, Sampling.of(how).through(record.super_resolution)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--registry", required=True, help="storage of a job on the cascade")
    parser.add_argument("--judge", type=Path, default=Path("build/miniature/judge.pt"))
    parser.add_argument("--keep", action="store_true", help="keep the figures in results/")
    args = parser.parse_args()
    torch.set_num_threads(1)
    registry, judge = Registry(Store(args.registry)), train_judge(args.judge)
    first = next(iter(registry.list()))
    facts = {}
    for name in SAMPLERS:
        backbone, sampling = load(name, first)
        found = measure(registry, judge, [], backbone, sampling)
        facts[name] = {kind: found[kind] for kind in ("num_models", *SHARES)}
        print(f"\n{name}")
        print_table(facts[name])
    finish("variance", facts, args.keep)


if __name__ == "__main__":
    main()
