"""Trial steps with several numbers of slots, by which `resources.pack: auto` is chosen.

Runs in a Ray task with the resources of a lane's worker, on the lane's own code and random data.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from dataclasses import dataclass

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from dbray.bases import Base
from dbray.bases.condition import Condition
from dbray.cluster import hardware
from dbray.errors import DbrayError, LaneLost, OutOfMemory, first_line
from dbray.hardware import Hardware
from dbray.lanes.beat import Beat
from dbray.lanes.lane import Lane
from dbray.lanes.stage import Stage
from dbray.planning.memory import memory_of
from dbray.planning.packing import choose, sizes_to_try
from dbray.planning.plan import Plan
from dbray.planning.stop import StopMeasure
from dbray.spec.job import Job
from dbray.training.batches import Share
from dbray.training.data import Latents, TrainingData
from dbray.training.loop import Course

_WARM_STEPS, _TIMED_STEPS = 1, 5
_NUM_IMAGES = 4


def choose_pack(plan: Plan, num_lanes: int) -> tuple[int, dict[int, float]]:
    """Choose the number of slots of a job's lanes; return it with the measured times.

    Lanes share a machine's memory where there are no GPUs.

    Raises:
        BaseError: the base cannot be loaded.
        LaneLost: the process that measures died.
    """
    resources = plan.job.resources
    uses_gpu = hardware().uses_gpus(resources.device)
    task = ray.remote(_choose).options(
        num_cpus=resources.threads_per_worker, num_gpus=1 if uses_gpu else 0, max_retries=0
    )
    trial = Trial(plan.job, plan.base, plan.measure, uses_gpu)
    of_lane = -(-len(plan.to_train) // num_lanes)
    try:
        return ray.get(task.remote(trial, of_lane, 1 if uses_gpu else num_lanes))
    except DbrayError:
        raise
    except RayError as exc:
        # The text of a task's error is its traceback; what it was caused by says what was wrong.
        cause = exc.cause if isinstance(exc, RayTaskError) else exc
        raise LaneLost(f"the number of slots cannot be measured: {first_line(cause)}; set "
                       "resources.pack to a number") from exc  # fmt: skip


def _choose(trial: Trial, num_subjects: int, num_sharing: int) -> tuple[int, dict[int, float]]:
    torch.set_num_threads(trial.job.resources.threads_per_worker)
    memory = Hardware.local().memory_bytes
    sizes = sizes_to_try(num_subjects, trial.needs, memory and memory // num_sharing)
    return choose(trial.measured(sizes))


@dataclass(frozen=True)
class Trial:
    """Steps of a plan's lanes on one device, with several numbers of slots."""

    job: Job
    base: Base
    measure: StopMeasure | None
    uses_gpu: bool

    def needs(self, num_slots: int) -> int:
        """Estimate the bytes of a lane with so many slots."""
        job = self._packed(num_slots)
        return sum(memory_of(self.base, job.recipe, job.resources, self.uses_gpu).values())

    def measured(self, sizes: tuple[int, ...]) -> Iterator[tuple[int, float]]:
        """Measure rising numbers of slots, until the memory is full."""
        for num_slots in sizes:
            try:
                yield num_slots, self.step_seconds(num_slots)
            except OutOfMemory:
                if num_slots == 1:
                    raise
                return

    def step_seconds(self, num_slots: int) -> float:
        """Measure the seconds of one subject's step, in a pack of so many."""
        job, device = self._packed(num_slots), torch.device("cuda" if self.uses_gpu else "cpu")
        lane = Lane(job, self.base, self.measure, Share(), device, Beat(None, "", leads=False))
        stage = lane.stages[0]
        courses = {
            slot: Course(random_subject(stage, slot), job.recipe, stage.schedule)
            for slot in range(num_slots)
        }
        taken = []
        for _ in range(_WARM_STEPS + _TIMED_STEPS):
            began = time.perf_counter()
            stage.pack.step(courses)
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
            taken.append(time.perf_counter() - began)
        del lane, stage, courses
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return min(taken[_WARM_STEPS:]) / num_slots

    def _packed(self, num_slots: int) -> Job:
        """The job with so many slots, not compiled: compiling each number would take minutes."""
        changes = {"pack": num_slots, "compile": False}
        resources = self.job.resources.model_copy(update=changes)
        return self.job.model_copy(update={"resources": resources})


def random_subject(stage: Stage, number: int) -> TrainingData:
    """Make a subject of random latents, with the shapes of a real one."""
    shape = stage.backbone.latent_shape()

    def images() -> Latents:
        return Latents(torch.randn(_NUM_IMAGES, *shape), torch.ones(_NUM_IMAGES, *shape))

    def condition(prompt: str, times: int) -> Condition:
        return stage.method.condition(stage.backbone, stage.recipe, [prompt] * times)

    return TrainingData(
        subject_id=f"trial-{number}",
        views=images(),
        views_of_image=tuple((index,) for index in range(_NUM_IMAGES)),
        instance=condition("a photo of a zwx dog", _NUM_IMAGES),
        prior=images() if stage.recipe.prior_weight > 0 else None,
        prior_prompt=condition("a photo of a dog", 1),
    )
