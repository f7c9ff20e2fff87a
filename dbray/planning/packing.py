"""Packing: which jobs can train several subjects together, and how many `auto` chooses.

A lane trains the subjects of a pack in the slots of one resident model. The number of slots is kept
for the whole job, as a subject's weights depend on it in their last bits, like on the number of CPU
threads. It is recorded with the job and with each model. It is not part of a fingerprint: a model
that is published with another number of slots is kept, as training it again would gain nothing.

Runs nothing, and needs neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dbray.spec.recipe import Recipe
from dbray.spec.resources import Resources

CANDIDATES = (1, 2, 4, 8, 16, 32)
"""The numbers of slots that `auto` tries."""
LEAST_GAIN = 0.05
"""By how much the time of a subject's step has to fall for twice the slots."""


def obstacle(recipe: Recipe, resources: Resources) -> tuple[str, str] | None:
    """Return why subjects cannot train together, and what to change; None if they can."""
    pack = f"resources.pack: {resources.pack}"
    if recipe.method.why_not_packed:
        fix = "leave out pack, or set recipe.method to lora or pivotal"
        return f"{pack}: subjects of {recipe.method.kind} {recipe.method.why_not_packed}", fix
    if resources.gpus_per_subject > 1 or resources.zero_stage:
        what = f"{pack}: subjects train together on one device, with plain torch"
        return what, "leave out pack, or set gpus_per_subject to 1 and zero_stage to 0"
    if recipe.crop == "bucket":
        what = f"{pack}: with crop: bucket, rows have several sizes and do not fit one batch"
        return what, "leave out pack, or set recipe.crop to centre"
    return None


def is_packed(recipe: Recipe, resources: Resources) -> bool:
    """Whether a lane may train several subjects together."""
    return resources.pack != 1 and obstacle(recipe, resources) is None


def choose(measured: Iterable[tuple[int, float]]) -> tuple[int, dict[int, float]]:
    """Choose a number of slots; return it with the measurements that were needed.

    Args:
        measured: rising numbers of slots, each with the seconds of a subject's step. The next one
            is asked for while the last one gained more than LEAST_GAIN.
    """
    chosen, seconds = 0, {}
    for num_slots, taken in measured:
        seconds[num_slots] = taken
        if chosen and taken > (1 - LEAST_GAIN) * seconds[chosen]:
            break
        chosen = num_slots
    return chosen, seconds


def evened(num_slots: int, num_subjects: int, num_lanes: int) -> int:
    """Lower a number of slots so that fewer stay empty at the end of a job.

    20 subjects in 2 lanes of 8 slots take two rounds, which 5 slots do as well.
    """
    rounds = -(-num_subjects // (num_lanes * num_slots))
    return -(-num_subjects // (num_lanes * rounds))


def sizes_to_try(
    num_subjects: int, needs: Callable[[int], int], memory_bytes: int | None
) -> tuple[int, ...]:
    """Return the candidates that a lane's subjects can fill, and whose needs of memory are met.

    Args:
        num_subjects: of a lane, at most.
        needs: bytes by number of slots.
        memory_bytes: of the device; None if unknown.
    """
    filled = [n for n in CANDIDATES if n == 1 or n // 2 < num_subjects]
    return tuple(n for n in filled if n == 1 or memory_bytes is None or needs(n) <= memory_bytes)
