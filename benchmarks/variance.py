"""Does the variance that a cascade predicts fit after fine-tuning? Measured by the judge.

    python benchmarks/variance.py --registry FOLDER [--judge build/miniature/judge.pt] [--keep]

Fine-tuning changes the noise that the first stage predicts, and leaves the rows of its last layer
that predict the variance as they were. Every model of a registry of drawn subjects on the miniature
cascade is sampled in all places of the drawn world: by `ddpm` with that variance, by `ddpm` with
the fixed one ("fixed_small"), and by `dpm++`, which adds no noise. The second stage is the same
each time. `colour`, `class` and `place` are as in `identity.py`; `drift` is how much more often
than the untouched base the model gives the subject's colour to others of its class.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from identity import PLACES, SHARES, number_of, seen, share
from measure import finish, print_table
from miniature import Judge, train_judge

from dbray import bases
from dbray.bases import Backbone, Compute
from dbray.bases.families.deepfloyd_if import CHANNELS
from dbray.bases.generate import Sampling, generate
from dbray.method.stages import put
from dbray.miniature import world
from dbray.miniature.captions import PLACE_PHRASES
from dbray.records.models import Registry
from dbray.records.record import ModelRecord
from dbray.spec.prompts import fill_prompt
from dbray.spec.sections import Previews
from dbray.storage.store import Store

CASCADE = bases.MINIATURE_FOLDER.with_name("cascade")
FIXED = "ddpm, fixed variance"
SAMPLERS = {"ddpm, its own variance": ("ddpm", 100), FIXED: ("ddpm", 100), "dpm++": ("dpm++", 20)}


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


def look(backbone: Backbone, how: Sampling, judge: Judge, name: str) -> dict[str, list[str]]:
    """What the judge sees in images of `name` in every place."""
    prompts = [f"a photo of {name} {PLACE_PHRASES[place][0]}" for place in PLACES]
    return seen(judge, generate(backbone, prompts, list(range(len(prompts))), how))


def measure(registry: Registry, judge: Judge, name: str) -> dict[str, float]:
    """Return the mean of each share over the models, sampled in one way."""
    records = list(registry.list())
    backbone, how = load(name, records[0])
    nouns = sorted({record.class_noun for record in records})
    before = {noun: look(backbone, how, judge, f"a {noun}")["colour"] for noun in nouns}
    found: dict[str, list[float]] = {kind: [] for kind in SHARES}
    for record in records:
        noun = record.class_noun
        colour = world.subject_scenes(number_of(record), noun)[0].identity.colour
        with tempfile.TemporaryDirectory() as folder:
            put(backbone, record, registry.weights(record, Path(folder)))
        after = look(backbone, how, judge, f"a {noun}")["colour"]
        answers = look(backbone, how, judge, fill_prompt("a {subject}", noun, record.identifier))
        found["colour"].append(share(answers["colour"], colour))
        found["class"].append(share(answers["class"], noun))
        found["place"].append(share(answers["place"], PLACES))
        found["drift"].append(share(after, colour) - share(before[noun], colour))
    return {kind: round(statistics.mean(shares), 3) for kind, shares in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--registry", required=True, help="storage of a job on the cascade")
    parser.add_argument("--judge", type=Path, default=Path("build/miniature/judge.pt"))
    parser.add_argument("--keep", action="store_true", help="keep the figures in results/")
    args = parser.parse_args()
    torch.set_num_threads(1)
    registry, judge = Registry(Store(args.registry)), train_judge(args.judge)
    facts = {}
    for name in SAMPLERS:
        facts[name] = measure(registry, judge, name)
        print(f"\n{name}")
        print_table(facts[name])
    finish("variance", facts, args.keep)


if __name__ == "__main__":
    main()
