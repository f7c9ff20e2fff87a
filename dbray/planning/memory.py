"""The memory that a lane's workers need, from numbers of parameters, and resources that fit it."""

from __future__ import annotations

from collections.abc import Iterator

from dbray.bases import Base
from dbray.hardware import Hardware
from dbray.method.methods import method_of
from dbray.planning.cascade import trained_stages
from dbray.planning.plan import Plan
from dbray.spec.job import Job
from dbray.spec.recipe import Recipe
from dbray.spec.resources import Resources
from dbray.training.engine import memory_plan

_ORDER = ((0, None), (1, None), (2, None), (3, None),
          (1, "optimiser"), (2, "optimiser"), (3, "optimiser"))  # fmt: skip
"""ZeRO stages and offloading, the fastest first."""


def memory_of(base: Base, recipe: Recipe, resources: Resources, on_gpus: bool) -> dict[str, int]:
    """Estimate the bytes that each worker needs at once on its device, by kind.

    `working` is an estimate: activations of a step or, where that is more, the text encoders or the
    autoencoder while a subject is encoded. The rest follows from the numbers of parameters. Where
    the number of slots is not chosen yet, there is one.
    """
    method = method_of(recipe.method)
    num_slots = resources.num_slots
    halves = on_gpus and recipe.precision == "bf16"
    frozen_bytes = method.num_frozen(base, recipe) * (2 if halves else 4)
    num_trained = num_slots * method.num_trained(base, recipe)
    kept = memory_plan(num_trained, frozen_bytes, recipe, resources)
    encoders = [sum(_stored(base, part, halves) for part in base.family.text_encoders)]
    if base.family.autoencoder:
        encoders.append(4 * base.num_parameters(base.family.autoencoder))
    return {**kept, "working": max(num_slots * _activations(base, recipe, resources), *encoders)}


def memory_of_job(job: Job, base: Base, resources: Resources, on_gpus: bool) -> dict[str, int]:
    """Estimate the same for all networks that a lane trains; one of them works at a time."""
    found = [memory_of(own, recipe, resources, on_gpus)
             for own, recipe, _ in trained_stages(job, base)]  # fmt: skip
    total = {kind: sum(one[kind] for one in found) for kind in found[0]}
    return total | {"working": max(one["working"] for one in found)}


def _stored(base: Base, part: str, halves: bool) -> int:
    """Bytes of a text encoder, which stays in bfloat16 if its file is (assumed without a file)."""
    is_half = halves and (not base.has_weights or base.layout.type(part) == "BF16")
    return base.num_parameters(part) * (2 if is_half else 4)


def _activations(base: Base, recipe: Recipe, resources: Resources) -> int:
    """Bytes that a step keeps for its backward pass, without those of text encoders that train."""
    num_rows = recipe.batch_size * (2 if recipe.prior_weight > 0 else 1)
    rows_of_rank = -(-num_rows // resources.gpus_per_subject)
    width = 2 if recipe.precision == "bf16" else 4
    return rows_of_rank * width * base.family.kept_values(base.layout, recipe)


def propose(plan: Plan, hardware: Hardware) -> Resources | None:
    """Return the fastest resources with which a worker's memory suffices; None if none do.

    If a device's memory is unknown, returns those of the job.
    """
    given, memory = plan.job.resources, hardware.memory_bytes
    if memory is None:
        return given
    on_gpus = hardware.uses_gpus(given.device)
    for tried in (given, *_others(given, hardware.num_gpus if on_gpus else 0)):
        if plan.job.recipe.crop == "bucket" and tried != given:
            return None  # it has no ZeRO and no other ranks
        if sum(memory_of_job(plan.job, plan.base, tried, on_gpus).values()) <= memory:
            return tried
    return None


def _others(given: Resources, num_gpus: int) -> Iterator[Resources]:
    """Yield what else a job could be given: fewer slots, then no more GPUs, then twice as many."""
    while given.pack not in (1, "auto"):
        given = given.model_copy(update={"pack": given.pack // 2})
        yield given
    size = given.gpus_per_subject
    while size <= max(num_gpus, given.gpus_per_subject):
        for stage, offload in _ORDER if num_gpus else ():
            chosen = {"gpus_per_subject": size, "zero_stage": stage, "offload": offload}
            yield given.model_copy(update={**chosen, "compile": given.compile and stage != 3})
        size *= 2


def advice(proposed: Resources | None, given: Resources) -> str:
    """Say in words what to change, where the memory does not suffice."""
    if proposed is None:
        return ("set recipe.precision to bf16, recipe.gradient_checkpointing to true or "
                "recipe.method to lora, or use larger devices or more of them")  # fmt: skip
    names = ("pack", "gpus_per_subject", "zero_stage", "offload", "compile")
    changes = [
        f"{name}: {str(value).lower() if isinstance(value, bool) else value or 'null'}"
        for name in names
        if (value := getattr(proposed, name)) != getattr(given, name)
    ]
    return f"set in resources {', '.join(changes)}"
