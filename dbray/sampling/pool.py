"""Bulk sampling on Ray Data: a pool of actors, each with a warm backbone, that carry out tasks.

Owns the size of the pool, the resources of an actor, what happens when an actor dies, and how its
errors reach the driver. Does not know what is sampled: see dbray.sampling.priors and previews.

Tasks and results cross processes as plain Arrow columns (JSON text and bytes).
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import pyarrow as pa
import ray
import torch
from ray.data import ActorPoolStrategy, Dataset
from ray.exceptions import RayError
from ray.util.annotations import RayDeprecationWarning

from dbray import bases, errors
from dbray.bases import Backbone, Base, Compute
from dbray.cluster import hardware
from dbray.errors import DbrayError, LaneLost, OutOfMemory, first_line
from dbray.spec.recipe import Recipe
from dbray.spec.resources import Device, Resources
from dbray.spec.super_resolution import SuperResolution
from dbray.training.device import device_is_lost

logger = logging.getLogger(__name__)

MAX_DEATHS = 3
"""How often an actor is restarted after its process died.

Ray Data's default has no limit: a task that always kills its process would never end.
"""
_TRIES = 30
"""How often a task is retried. Deaths of its actor end it sooner, except if a node is dead: Ray
notices that only after 15 seconds, and until then each try at an actor there fails at once."""

_RESULT = pa.schema(
    [
        ("index", pa.int64()),
        ("names", pa.list_(pa.string())),
        ("contents", pa.list_(pa.binary())),
        ("error", pa.string()),
        ("reason", pa.string()),
    ]
)


@dataclass(frozen=True)
class SamplingPool:
    """The number of sampling actors, the CPU threads of each, and their device.

    `num_actors` None: one per GPU of the cluster or, without GPUs, one per free CPU.
    """

    num_actors: int | None = None
    threads: int = 1
    device: Device = "auto"

    @classmethod
    def of(cls, resources: Resources) -> SamplingPool:
        """Return the pool that a job's resources ask for."""
        return cls(resources.prior_actors, resources.threads_per_worker, resources.device)

    def size(self, num_tasks: int) -> int:
        """Return the number of actors for a number of tasks."""
        held = hardware()
        if held.uses_gpus(self.device):
            room = held.num_gpus
        else:
            room = int(ray.available_resources().get("CPU", 0)) // self.threads
        return max(1, min(self.num_actors or room, num_tasks))

    def remote_args(self) -> dict[str, Any]:
        """Return the resources that each actor requests from Ray."""
        if hardware().uses_gpus(self.device):
            return {"num_gpus": 1, "num_cpus": 0}
        return {"num_cpus": self.threads}


@dataclass(frozen=True)
class Result:
    """The outcome of task number `index`: files by name, or an error."""

    index: int
    files: dict[str, bytes] = field(default_factory=dict)
    error: DbrayError | None = None

    def checked(self) -> dict[str, bytes]:
        """Return the files. Raises the error instead, if there is one."""
        if self.error is not None:
            raise self.error
        return self.files


class SamplingActor:
    """Has a warm backbone; subclasses define one task in `make`."""

    def __init__(self, base: Base, threads: int) -> None:
        torch.set_num_threads(threads)
        self.base = base
        self._device = "cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu"
        self._warm: tuple[Compute, Backbone] | None = None

    def backbone(
        self, recipe: Recipe | None = None, stage: SuperResolution | None = None
    ) -> Backbone:
        """Return the backbone in a recipe's precision and resolution, with arbitrary weights.

        With `stage`, the second stage of a cascade is loaded too.
        """
        compute = Compute.of(self._device, recipe, stage) if recipe else Compute(self._device)
        if self._warm is None or self._warm[0] != compute:
            self._warm = None  # free the old one first: two may not fit in memory
            self._warm = compute, bases.load(self._base_here, compute)
        return self._warm[1]

    @cached_property
    def _base_here(self) -> Base:
        """Find the base at the first task, not at construction: a failure is then its result."""
        return bases.find_on_this_node(self.base)

    def make(self, task: dict[str, Any]) -> dict[str, bytes]:
        """Carry out one task; the returned files go to the driver."""
        raise NotImplementedError

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Carry out a batch of one task. Never raises: an error is a result too.

        If the device is lost, the process exits, because every later task would fail: Ray starts
        another actor and retries the task.
        """
        [row] = batch.to_pylist()
        files: dict[str, bytes] = {}
        error = reason = None
        try:
            files = self.make(json.loads(row["task"]))
        except torch.OutOfMemoryError as exc:
            error, reason = OutOfMemory.__name__, f"the batch does not fit on the device: {exc}"
        except DbrayError as exc:
            error, reason = type(exc).__name__, str(exc)
        except Exception as exc:
            logger.exception("sampling failed task=%d", row["index"])
            if device_is_lost(torch.device(self._device), exc):
                os._exit(1)  # Ray does not replace an actor that exits cleanly
            error, reason = DbrayError.__name__, f"sampling failed: {type(exc).__name__}: {exc}"
        columns = [[row["index"]], [list(files)], [list(files.values())], [error], [reason]]
        return pa.table(columns, schema=_RESULT)


def sample(
    actor: type[SamplingActor],
    actor_args: tuple[Any, ...],
    tasks: Sequence[Mapping[str, Any]],
    pool: SamplingPool,
) -> Generator[Result]:
    """Carry out tasks on a pool of actors; yield results as they arrive, in any order.

    Args:
        actor: class of the actors.
        actor_args: arguments of its constructor.
        tasks: one JSON object each. A task may be carried out twice, so its effects must be
            idempotent; it yields one result.
        pool: number of actors. They are started for this call, and end with the iteration.

    Raises:
        LaneLost: the actors died more often than they are restarted.
    """
    if not tasks:
        return
    dataset = _dataset(actor, actor_args, tasks, pool)
    try:
        # With prefetching, Ray would hold a result back until the next one is ready.
        for batch in dataset.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=0
        ):
            assert isinstance(batch, pa.Table)
            for row in cast("pa.Table", batch).to_pylist():
                yield _read_result(row)
    except RayError as exc:
        raise LaneLost(
            f"the sampling processes died more than {MAX_DEATHS} times, often because memory ran "
            f"out or a GPU is broken: {first_line(exc)}"
        ) from exc


def _dataset(
    actor: type[SamplingActor],
    actor_args: tuple[Any, ...],
    tasks: Sequence[Mapping[str, Any]],
    pool: SamplingPool,
) -> Dataset:
    # Ray Data logs its executors on every run; deaths that matter are raised anyway.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    rows = [{"index": index, "task": json.dumps(task)} for index, task in enumerate(tasks)]
    # One block per task, so that tasks are scheduled, and lost, one by one.
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    with warnings.catch_warnings():
        # Ray 2.60 deprecates max_restarts, but has no replacement.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        return dataset.map_batches(
            actor,
            fn_constructor_args=actor_args,
            batch_size=1,
            batch_format="pyarrow",
            # Each actor runs one task and queues another, so that no actor is idle between tasks or
            # while another has a queue at the end.
            compute=ActorPoolStrategy(size=pool.size(len(tasks)), max_tasks_in_flight_per_actor=2),
            max_restarts=MAX_DEATHS,
            max_task_retries=_TRIES,
            **pool.remote_args(),
        )


def _read_result(row: dict[str, Any]) -> Result:
    files = dict(zip(row["names"], row["contents"], strict=True))
    error = None
    if row["error"] is not None:
        kind = getattr(errors, row["error"], DbrayError)
        error = kind(row["reason"])
    return Result(row["index"], files, error)
