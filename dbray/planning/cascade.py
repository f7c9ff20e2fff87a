"""The stages that a job trains, and what is wrong with the second one of a cascade."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from dbray import bases
from dbray.bases import Base
from dbray.errors import BaseError, Problem
from dbray.planning.packing import obstacle
from dbray.spec.job import Job
from dbray.spec.recipe import Recipe
from dbray.spec.super_resolution import Enlargement, SuperResolution

_KEY = "super_resolution"
_MAX_LEVEL = 350
"""Of an x4 upscaler whose index does not say: that of the published one."""


def trained_stages(job: Job, base: Base) -> Iterator[tuple[Base, Recipe, SuperResolution | None]]:
    """Yield the networks that a resolved job trains, in order, each with its recipe.

    The second of a cascade comes with its section of the job.
    """
    yield base, recipe_of(job), None
    section = job.super_resolution
    if section is not None and section.train and base.super_resolution is not None:
        yield base.super_resolution, recipe_of(job, section), section


def recipe_of(job: Job, section: SuperResolution | None = None) -> Recipe:
    """Return the recipe of the first stage, or of the second, whose section is given."""
    return job.recipe if section is None else section.recipe


def num_steps(job: Job, base: Base) -> int:
    """Return the most optimiser steps of a subject, through all stages."""
    return sum(recipe.steps for _, recipe, _ in trained_stages(job, base))


def largest_resolution(job: Job) -> int | None:
    """Return the side of the largest square that training makes of a photograph, if known."""
    stage = job.super_resolution
    larger = stage.recipe.resolution if stage is not None and stage.train else None
    return larger or job.recipe.resolution


def find_second_stage(
    job: Job, base: Base, where: Callable[[str], str], needs_weights: bool
) -> tuple[Base, list[Problem]]:
    """Return the base with the second stage that the job names, and what is wrong with that."""
    try:
        return bases.with_stage(base, job.super_resolution, needs_weights, f"{_KEY}."), []
    except BaseError as exc:
        return base, [Problem("error", where(_KEY), f"{_KEY}: {exc}", f"change '{_KEY}'")]


def check_second_stage(job: Job, base: Base, where: Callable[[str], str]) -> Iterator[Problem]:
    """Find what the second stage of a resolved job cannot do."""
    section, second = job.super_resolution, base.super_resolution
    if section is None or second is None:
        return
    for name, what, fix in _about_sampling(section, second, _KEY):
        yield Problem("error", where(_KEY), f"{name}: {what}", fix)
    for what, fix in _about_training(section, second):
        yield Problem("error", where(_KEY), f"{_KEY}: {what}", fix)
    if section.train and job.prior.kind == "teacher":
        what = f"{_KEY}: it is kept by class images, and a teacher makes none"
        yield Problem("error", where(_KEY), what, "set prior.kind to images, or train to false")
    if section.train and job.resources.zero_stage:
        what = f"{_KEY}: ZeRO divides the weights of one network, and a lane would hold two"
        yield Problem("error", where("resources"), what, "set zero_stage to 0")
    if base.serves is not None:
        what = f"{_KEY}: a serve_base has no second stage"
        yield Problem("error", where("serve_base"), what, "leave out serve_base")
    is_packed = section.train and job.resources.pack not in (1, "auto")
    if is_packed and (found := obstacle(section.recipe, job.resources)):
        yield Problem("error", where(_KEY), f"{_KEY}: {found[0]}", found[1])


def _about_sampling(section: Enlargement, own: Base, key: str) -> Iterator[tuple[str, str, str]]:
    """Find what a network, and those after it, cannot draw by; yield the key of each first."""
    try:
        own.family.check_sampler(section.sampler)
    except BaseError as exc:
        yield key, str(exc), "set sampler to one of those, or leave it out"
    most = own.layout.index.get("max_noise_level", _MAX_LEVEL)
    if own.family.autoencoder and section.noise_level > most:
        what = f"noise_level {section.noise_level} is over the network's {most}"
        yield key, what, "lower noise_level"
    if section.then is not None and own.super_resolution is not None:
        yield from _about_sampling(section.then, own.super_resolution, f"{key}.then")


def _about_training(section: SuperResolution, second: Base) -> Iterator[tuple[str, str]]:
    recipe = section.recipe
    if not section.train:
        return
    yield from second.family.unfit(second.layout, recipe)
    if recipe.crop == "bucket":
        yield "crop: bucket is for the first stage alone", "set crop to centre"
    if recipe.stop is not None:
        yield "stop is for the first stage alone", "set recipe.steps instead"
    resolution = recipe.resolution or second.resolution
    if resolution % second.scale:
        what = f"resolution {resolution} is not a multiple of its scale {second.scale}"
        yield what, f"set resolution to {resolution // second.scale * second.scale}"
