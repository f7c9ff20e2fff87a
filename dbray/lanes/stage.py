"""One network of a lane, ready to train: backbone, recipe, method, pack and material.

A lane has one, or two of a cascade: the network that draws, and the one that enlarges.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from dbray import bases
from dbray.bases import Backbone, Base, Compute
from dbray.bases.schedule import Schedule
from dbray.lanes.material import Material
from dbray.method.methods import Method, method_of
from dbray.planning.cascade import recipe_of
from dbray.spec.job import Job
from dbray.spec.recipe import Recipe
from dbray.spec.super_resolution import SuperResolution
from dbray.training.engine import Engine
from dbray.training.pack import Pack, Slots, make_pack


@dataclass(frozen=True)
class Stage:
    """What the attempts at all subjects share of one network."""

    base: Base
    recipe: Recipe
    section: SuperResolution | None
    """The job's section about it, if it is the second of a cascade."""
    backbone: Backbone
    method: Method
    pack: Pack
    schedule: Schedule
    material: Material
    after_step: Callable[[Engine], None] | None
    """What the method does after each step, if anything."""

    @property
    def is_second(self) -> bool:
        """Whether it enlarges what another draws."""
        return self.section is not None


def make_stage(
    job: Job, base: Base, section: SuperResolution | None, num_slots: int, device: str
) -> Stage:
    """Load a network and prepare its training. `section` is given for the second of a cascade."""
    recipe = recipe_of(job, section)
    checkpointing = recipe.gradient_checkpointing
    compute = Compute(device, recipe.precision, recipe.resolution, checkpointing, visits=True)
    backbone = bases.load(base, compute)
    method = method_of(recipe.method)
    network = method.network(backbone, recipe, num_slots)
    rates = method.rates(network, recipe)
    slots = Slots(num_slots, partial(method.assign, network))
    pack = make_pack(network, recipe, job.resources, backbone.device, rates, slots)
    schedule = backbone.schedule.to(backbone.device)
    material = Material(job, backbone, section)
    after_step = method.after_step if rates else None
    return Stage(base, recipe, section, backbone, method, pack, schedule, material, after_step)
