"""Packs on a tiny base, and subjects of random latents that train in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from dbray import bases
from dbray.method.methods import method_of
from dbray.spec.recipe import Recipe
from dbray.spec.resources import Resources
from dbray.training.data import Latents, TrainingData
from dbray.training.loop import Course
from dbray.training.pack import Pack, Slots, make_pack
from kit.training import CPU

IDENTIFIERS = {"rex": "zb", "tom": "xc", "ace": "qd"}


class World:
    """A pack on the tiny base, and subjects of random latents."""

    def __init__(
        self, base: bases.Base, recipe: Recipe, num_slots: int, device: torch.device = CPU
    ) -> None:
        torch.set_num_threads(1)
        self.base, self.recipe, self.method = base, recipe, method_of(recipe.method)
        method = self.method
        self.backbone = backbone = bases.load(base, bases.Compute(str(device), recipe.precision))
        self.schedule = backbone.schedule.to(device)
        self.network = method.network(backbone, recipe, num_slots)
        rates = method.rates(self.network, recipe)
        slots = Slots(num_slots, partial(method.assign, self.network))
        self.pack: Pack = make_pack(self.network, recipe, Resources(), device, rates, slots)
        shape = backbone.latent_shape()
        class_prompt = method.condition(backbone, recipe, ["a dog"])

        def images(generator: torch.Generator) -> Latents:
            mean = torch.randn(3, *shape, generator=generator)
            return Latents(mean, torch.full(mean.shape, 0.1))

        self.subjects = {}
        for name, identifier in IDENTIFIERS.items():
            prompts = method.condition(backbone, recipe, [f"a photo of the {identifier} dog"] * 3)
            draw = torch.Generator().manual_seed(sum(name.encode()))
            views, prior = images(draw), images(draw)
            self.subjects[name] = TrainingData(
                name, views, ((0,), (1,), (2,)), prompts, prior, class_prompt
            )

    def begin(self, slot: int, name: str, **changes) -> Course:
        """Prepare a slot for a subject."""
        engine = self.pack.engines[slot]
        engine.reset()
        engine.assign(self.method.begin(self.network, IDENTIFIERS[name], slot))
        return Course(replace(self.subjects[name], **changes), self.recipe, self.schedule)

    def train(self, names: Mapping[int, str], **changes) -> dict[str, dict[str, Tensor]]:
        """Train subjects from beginning to end, by slot; return their weights."""
        self.go_on({slot: self.begin(slot, name, **changes) for slot, name in names.items()})
        return {name: self.weights(slot) for slot, name in names.items()}

    def weights(self, slot: int) -> dict[str, Tensor]:
        return self.pack.engines[slot].weights()

    def step(self, courses: Mapping[int, Course]) -> None:
        self.pack.step(courses)
        for slot in courses:
            self.method.after_step(self.pack.engines[slot])

    def go_on(self, courses: Mapping[int, Course], num_steps: int = 1000) -> None:
        """Take steps until all have ended."""
        left = dict(courses)
        while left and num_steps:
            self.step(left)
            for course in left.values():
                course.advance()
            left = {slot: course for slot, course in left.items() if not course.is_over}
            num_steps -= 1


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def gap(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], base: Mapping[str, Tensor]
) -> float:
    """Return the norm of the difference, relative to that of the change in training."""

    def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
        return torch.cat([(one[k] - other[k]).flatten() for k in first]).norm().item()

    return distance(first, second) / distance(first, base)
