"""What a plan costs: lanes, steps, bytes and seconds, on given hardware. No Ray.

Owns the estimate, and which earlier jobs it may be based on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dbray.errors import Problem, StoreError
from dbray.hardware import Hardware
from dbray.method.methods import method_of
from dbray.planning.cascade import trained_stages
from dbray.planning.memory import memory_of_job
from dbray.planning.plan import Plan
from dbray.records.results import Rates, summaries
from dbray.spec.job import Job
from dbray.spec.resources import Resources
from dbray.storage.store import Store
from dbray.training.teacher import lesson_bytes

_PACE_FIELDS = {
    "recipe": ("method", "batch_size", "resolution", "crop", "precision", "prior_weight",
               "train_text_encoder", "gradient_checkpointing"),
    "prior": ("kind", "sampler", "steps", "guidance"),
    "resources": ("device", "gpus_per_subject", "threads_per_worker", "zero_stage", "offload",
                  "compile", "pack"),
}  # fmt: skip
"""Fields that decide how long a step and a class image take."""
_LATER_DEFAULTS = {"method": "full", "crop": "centre", "device": "auto", "kind": "images",
                   "offload": None, "compile": False, "pack": 1}  # fmt: skip
"""What jobs written before there was such a key meant."""


@dataclass(frozen=True)
class Cost:
    """What carrying out a Plan takes. Times are None if no earlier job gives the rates.

    `storage_bytes` counts what is published, by kind, with images as large as if PNG did not
    compress them, and class images with their latents; `model_bytes` is for the weights of one
    subject. Checkpoints of subjects in flight are not included. `warnings` are about hardware that
    holds no lane.
    """

    lanes: int
    prior_actors: int
    train_steps: int
    model_bytes: int
    storage_bytes: dict[str, int]
    memory_bytes: dict[str, int]
    lesson_bytes: int
    """Memory of the CPU that the teacher's predictions take, for each worker; 0 without teacher."""
    train_seconds: float | None
    prior_seconds: float | None
    warnings: tuple[Problem, ...] = ()


def estimate(plan: Plan, hardware: Hardware, rates: Rates | None) -> Cost:
    """Estimate what a plan takes.

    Args:
        plan: what remains.
        hardware: what the cluster holds.
        rates: of an earlier job on the same base; None if there was no such job.
    """
    resources, recipe = plan.job.resources, plan.job.recipe
    lanes = num_lanes(plan, hardware)
    stages = tuple(trained_stages(plan.job, plan.base))
    model_bytes = sum(method_of(own.method).published_bytes(base, own) for base, own, _ in stages)
    class_images = plan.num_prior_images + plan.num_copied_images
    side = plan.base.enlargement * (recipe.resolution or plan.base.resolution)
    preview_bytes = 3 * side**2
    num_previews = 2 * len(plan.job.previews.prompts)  # the subject's, and the base's beside them
    steps_each = sum(own.steps for _, own, _ in stages)
    fits = lanes > 0 or not plan.to_train
    train_seconds = prior_seconds = None
    if rates and fits:
        per_subject = rates.overhead_seconds + steps_each * rates.step_seconds
        train_seconds = -(-len(plan.to_train) // max(lanes, 1)) * per_subject
        # A job whose class images were all there already gives no rate for making them.
        if not plan.num_prior_images:
            prior_seconds = 0.0
        elif rates.prior_images_per_second:
            prior_seconds = plan.num_prior_images / rates.prior_images_per_second
    return Cost(
        lanes=lanes,
        prior_actors=num_prior_actors(plan, hardware),
        train_steps=len(plan.to_train) * steps_each,
        model_bytes=model_bytes,
        storage_bytes={
            "weights": len(plan.to_train) * model_bytes,
            "class images": class_images * _class_image_bytes(plan),
            "previews": len(plan.to_train) * num_previews * preview_bytes,
        },
        memory_bytes=memory_of_job(
            plan.job, plan.base, resources, hardware.uses_gpus(resources.device)
        ),
        lesson_bytes=_lesson_bytes(plan),
        train_seconds=train_seconds,
        prior_seconds=prior_seconds,
        warnings=() if fits else (replace(too_small(resources, hardware), severity="warning"),),
    )


def _class_image_bytes(plan: Plan) -> int:
    """Size of a class image, and of mean and deviation of its latents, in float32."""
    base = plan.base
    shape = base.latent_shape(plan.job.recipe.resolution or base.resolution)
    return 3 * base.resolution**2 + 2 * 4 * math.prod(shape)


def _lesson_bytes(plan: Plan) -> int:
    if not any(one.is_taught for one in plan.to_train):
        return 0
    recipe, resources, base = plan.job.recipe, plan.job.resources, plan.base
    shape = base.latent_shape(recipe.resolution or base.resolution)
    return resources.num_slots * lesson_bytes(recipe, shape, resources.gpus_per_subject)


def num_lanes(plan: Plan, hardware: Hardware) -> int:
    """Lanes that the cluster holds, at most one per subject; 0 if it holds none.

    A number given by the user stands: a cluster may grow on request.
    """
    resources = plan.job.resources
    room = hardware.num_cpus // (resources.gpus_per_subject * resources.threads_per_worker)
    if hardware.uses_gpus(resources.device):
        room = min(room, hardware.num_gpus // resources.gpus_per_subject)
    return min(resources.lanes or room, len(plan.to_train))


def too_small(resources: Resources, hardware: Hardware) -> Problem:
    """The problem of a cluster that holds no lane."""
    gpu = "1 GPU and " if hardware.uses_gpus(resources.device) else ""
    worker = f"{gpu}{resources.threads_per_worker} CPU(s)"
    needed = f"{resources.gpus_per_subject} worker(s) with {worker}"
    holds = f"{hardware.num_gpus} GPU(s) and {hardware.num_cpus} CPU(s)"
    return Problem(
        "error", "resources", f"a lane needs {needed} each; the cluster holds {holds}",
        "lower gpus_per_subject or threads_per_worker, or change device; if the cluster grows, set "
        "lanes, and device: cuda to wait for GPUs",
    )  # fmt: skip


def num_prior_actors(plan: Plan, hardware: Hardware) -> int:
    """Sampling actors that the cluster holds."""
    resources = plan.job.resources
    on_gpus = hardware.uses_gpus(resources.device)
    room = hardware.num_gpus if on_gpus else hardware.num_cpus // resources.threads_per_worker
    return max(resources.prior_actors or room, 1)


def latest_rates(store: Store, base_digest: str, like: Job) -> Rates | None:
    """Rates of the last job on this base in this storage; None if there was none.

    Args:
        store: where the jobs are.
        base_digest: of the base.
        like: the resolved job to estimate; jobs whose steps take another time do not count.
    """
    known = [
        (found.updated_at, job_id, found.rates)
        for job_id, found in summaries(store)
        if found.rates and found.base_digest == base_digest
    ]
    for _, job_id, rates in sorted(known, key=lambda one: one[:2], reverse=True):
        if _keeps_pace(store, job_id, like):
            return rates
    return None


def _keeps_pace(store: Store, job_id: str, job: Job) -> bool:
    """Whether the steps and class images of an earlier job took as long as this job's will."""
    try:
        earlier = _pace_of(store.read_json(f"jobs/{job_id}/job.json")["job"])
    except (StoreError, LookupError, TypeError):
        return False  # nobody knows what these rates are for
    kept = {*_PACE_FIELDS, "super_resolution"}
    return earlier == _pace_of(job.model_dump(mode="json", include=kept))


def _pace_of(job: Mapping[str, Any]) -> list[Any]:
    """The values of `_PACE_FIELDS` in a job as job.json holds it."""
    return [
        (_LATER_DEFAULTS | job[section])[name]
        for section, names in _PACE_FIELDS.items()
        for name in names
    ] + [job.get("super_resolution")]
