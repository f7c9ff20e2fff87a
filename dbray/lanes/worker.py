"""A lane: a group of workers that keep a backbone warm, and train subjects in the slots of a pack.

The only Ray Train code. One lane is one `TorchTrainer.fit`. Subjects come from the lease queue and
models go to the registry, so the death of a lane costs only the subjects that it is training. A
slot whose subject has ended is filled again before the next step; the others do not notice.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback, WorkerGroupError
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

from dbray.bases import Base
from dbray.errors import DbrayError, Diverged, LaneLost, TrainError
from dbray.lanes.attempt import Attempt
from dbray.lanes.beat import Beat, Clock
from dbray.lanes.lane import Lane
from dbray.lanes.trainer import LaneTrainer
from dbray.planning.plan import PlannedSubject
from dbray.planning.stop import StopMeasure
from dbray.records.results import Failure
from dbray.spec.job import Job
from dbray.storage.store import Store
from dbray.training.batches import Share
from dbray.training.device import device_is_lost

logger = logging.getLogger(__name__)

_WAIT_SECONDS = 0.5


@dataclass(frozen=True)
class LaneSpec:
    """What a lane's workers are started with."""

    name: str
    job: Job
    base: Base
    measure: StopMeasure | None
    """See Plan."""
    queue: Any
    """Handle of the actor that holds the LeaseQueue."""
    scratch: str
    """Folder in the job's storage for Ray Train's files about the lane."""
    use_gpu: bool


def run_lane(spec: LaneSpec) -> None:
    """Run one lane until no subject is waiting.

    Raises:
        LaneLost: its workers died more often than `max_lane_failures`.
    """
    # Ray reads these in this process. By default it checks workers every two seconds, and keeps a
    # process per lane to watch for preemption; the subjects of a lost lane are leased again. A
    # check takes 1.5 ms of the controller's CPU time, and the end of a lane waits for the next one.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    resources = spec.job.resources
    per_worker = {"CPU": float(resources.threads_per_worker)}
    filesystem, folder = Store(spec.job.storage).arrow(spec.scratch)
    callbacks: list[Any] = [_ReleaseOnDeath(spec), _Introduction(spec)]
    trainer = LaneTrainer(
        _work,
        train_loop_config={"spec": spec},
        scaling_config=ScalingConfig(
            num_workers=resources.gpus_per_subject,
            use_gpu=spec.use_gpu,
            resources_per_worker=per_worker | ({"GPU": 1.0} if spec.use_gpu else {}),
        ),
        run_config=RunConfig(
            name=spec.name,
            storage_filesystem=filesystem,
            storage_path=folder,
            failure_config=FailureConfig(max_failures=resources.max_lane_failures),
            callbacks=callbacks,
        ),
    )
    try:
        trainer.fit()
    except Exception as exc:
        raise LaneLost(f"{spec.name}: {_reason(exc)}") from exc


class _ReleaseOnDeath(UserCallback):
    """Releases the lane's subjects as soon as one of its workers is dead.

    Ray starts new workers once there is room for them, which may never be the case on a cluster
    that has lost a node. Runs in the controller, which Ray keeps on the driver's node.
    """

    def __init__(self, spec: LaneSpec) -> None:
        self._queue, self._lane = spec.queue, spec.name

    def after_exception(self, *_: Any, **__: Any) -> None:
        """Called by Ray Train before it starts new workers."""
        self._queue.release.remote(self._lane)


class _Introduction(ControllerCallback, WorkerGroupCallback):
    """Gives the queue the lane's controller and its workers' room, for the driver to end and free.

    A lane may wait for room until the job ends; and where a controller dies, Ray keeps the room
    until then. Ray has no public hooks for either; it runs internal callbacks that it is given, for
    uses such as this one.
    """

    def __init__(self, spec: LaneSpec) -> None:
        self._queue, self._lane = spec.queue, spec.name

    def after_controller_start(self, *_: Any, **__: Any) -> None:
        """Called by Ray Train before it asks for room."""
        controller = ray.get_runtime_context().current_actor
        self._queue.introduce.remote(self._lane, controller)

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Called by Ray Train once the workers are there."""
        room = worker_group.get_worker_group_state().placement_group_handle.placement_group
        self._queue.occupy.remote(self._lane, room)


def _reason(exc: Exception) -> str:
    """The error of the first worker that failed, without Ray's traceback."""
    failures = exc.worker_failures.values() if isinstance(exc, WorkerGroupError) else [exc]
    lines = str(next(iter(failures), exc)).strip().splitlines()
    frames = [number for number, line in enumerate(lines) if line.startswith("  ")]
    return "\n".join(lines[frames[-1] + 1 :] if frames else lines) or type(exc).__name__


def _work(config: dict[str, Any]) -> None:
    """Run on every worker of the lane."""
    spec: LaneSpec = config["spec"]
    torch.set_num_threads(spec.job.resources.threads_per_worker)
    _Worker(spec).run()


class _Worker:
    """One rank of a lane: leases subjects for its slots, until all have ended."""

    def __init__(self, spec: LaneSpec) -> None:
        context = ray.train.get_context()
        self._spec, self._queue = spec, spec.queue
        share = Share(context.get_world_rank(), context.get_world_size())
        self._beat = Beat(spec.queue, spec.name, leads=share.rank == 0)
        device = ray.train.torch.get_device()
        self._lane = Lane(spec.job, spec.base, spec.measure, share, device, self._beat)
        self._attempts: dict[int, Attempt] = {}
        """By slot."""
        self._ask_after = 0.0

    def run(self) -> None:
        """Train subjects until none is left."""
        if self._lane.leads:
            ray.get(self._queue.release.remote(self._spec.name))
        self._fill()
        while self._attempts:
            self._step()
            self._fill()

    def _fill(self) -> None:
        """Begin with subjects in the empty slots, as long as some are waiting."""
        for slot in range(self._lane.num_slots):
            while slot not in self._attempts:
                clock = Clock()
                with clock.phase("lease"):
                    leased = self._lease()
                if leased is None:
                    return
                self._start(slot, *leased, clock)

    def _lease(self) -> tuple[PlannedSubject, int] | None:
        """The next subject, which rank 0 requests for all ranks; None if there is none now.

        A lane without subjects waits until all have ended: others have the last ones, and if one of
        these lanes dies, this one takes over.
        """
        if self._attempts and time.monotonic() < self._ask_after:
            return None
        while True:
            answer: tuple[tuple[PlannedSubject, int] | None, bool] = (None, False)
            if self._lane.leads:
                answer = ray.get(self._queue.lease.remote(self._spec.name))
            # Broadcast in every round: waiting in a broadcast has a time limit.
            leased, is_done = self._lane.share.of_first(answer)
            if leased is not None or is_done:
                return leased
            if self._attempts:
                self._ask_after = time.monotonic() + _WAIT_SECONDS
                return None
            time.sleep(_WAIT_SECONDS)

    def _start(self, slot: int, planned: PlannedSubject, number: int, clock: Clock) -> None:
        """Begin an attempt in a slot; one that fails leaves the slot empty.

        Each rank first does what it can alone, and then all ranks compare: from there on they work
        together, and a rank that is missing would leave the others waiting.
        """
        attempt = Attempt(self._lane, slot, planned, clock)
        logger.info("subject leased id=%s attempt=%d", attempt.subject_id, number)
        self._beat.begin(attempt.subject_id)
        failure = self._try(attempt, attempt.encode, is_joint=False)
        failure = next((one for one in self._lane.share.gather(failure) if one is not None), None)
        if failure is None:
            failure = self._try(attempt, attempt.begin)
        if failure is None:
            self._attempts[slot] = attempt
        else:
            self._end(attempt, failure)

    def _step(self) -> None:
        """Take a step of all subjects; end those that are published or have failed."""
        began = time.monotonic()
        failures = self._take_step()
        seconds = (time.monotonic() - began) / len(self._attempts)
        for slot, attempt in list(self._attempts.items()):
            attempt.clock.add("train", seconds)
            failure = failures.get(slot) or self._try(attempt, attempt.finish_step)
            if failure is not None or attempt.is_published:
                del self._attempts[slot]
                self._end(attempt, failure)

    def _take_step(self) -> dict[int, Failure]:
        """Take a step of all subjects; return the failures, by slot.

        Where that fails, the step is tried with each alone, so that only those fail that must.
        """
        step, attempts = self._lane.step, self._attempts
        try:
            step(attempts)
        except Exception as exc:  # noqa: BLE001 - one subject must not stop the job
            if len(attempts) == 1 or self._must_end(exc):
                return {slot: self._failure_of(one, exc) for slot, one in attempts.items()}
            logger.warning("step of all slots failed; trying each alone error=%s", exc)
            tried = {
                slot: self._try(one, partial(step, {slot: one})) for slot, one in attempts.items()
            }
            return {slot: failure for slot, failure in tried.items() if failure is not None}
        return {}

    def _try(
        self, attempt: Attempt, work: Callable[[], None], is_joint: bool = True
    ) -> Failure | None:
        """Do part of an attempt; one subject that fails does not stop the lane.

        `is_joint`: the ranks do it together.
        """
        try:
            work()
        except Exception as exc:  # noqa: BLE001 - as above
            return self._failure_of(attempt, exc, is_joint)
        return None

    def _must_end(self, exc: Exception, is_joint: bool = True) -> bool:
        """Whether the workers of the lane have to be replaced.

        That is so where the ranks are out of step, or an engine or the device is broken.
        """
        lane = self._lane
        out_of_step = is_joint and lane.share.world_size > 1 and not isinstance(exc, Diverged)
        return out_of_step or lane.is_broken or device_is_lost(lane.device, exc)

    def _failure_of(self, attempt: Attempt, exc: Exception, is_joint: bool = True) -> Failure:
        """The failure to report for a subject.

        Raises:
            LaneLost: the workers of the lane must end, and Ray Train starts new ones; the failure
                is reported.
        """
        name, must_end = attempt.subject_id, self._must_end(exc, is_joint)
        if isinstance(exc, DbrayError):
            logger.warning("subject failed id=%s error=%s", name, exc)
            failure = Failure.of(exc)
        else:
            logger.error("subject failed id=%s", name, exc_info=exc)
            # An error of the device or of another rank is not the subject's fault: it is retried.
            kind = LaneLost if must_end else TrainError
            failure = Failure.of(kind(f"{type(exc).__name__}: {exc}"))
        if must_end:
            self._end(attempt, failure)
            raise LaneLost(f"{name}: {failure.message}") from exc
        return failure

    def _end(self, attempt: Attempt, failure: Failure | None) -> None:
        """Report how an attempt ended."""
        name, clock = attempt.subject_id, attempt.clock
        self._ask_after = 0.0  # with less company, the queue may give what it has just refused
        self._beat.end(name)
        clock.observe()
        if not self._lane.leads:
            return
        if failure is None:
            ray.get(self._queue.complete.remote(name, clock.seconds, clock.steps))
        else:
            ray.get(self._queue.fail.remote(self._spec.name, name, failure))
