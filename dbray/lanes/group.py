"""Several lanes that share one queue of subjects, until every subject has ended.

Owns the queue's actor and one thread per lane. Does not know what a lane does with a subject, or
what a failed subject means for the job.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.train import ControllerError
from ray.util.placement_group import (
    PlacementGroup,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dbray.cluster import hardware
from dbray.errors import LaneLost, first_line
from dbray.lanes.leases import LeaseQueue, Snapshot
from dbray.lanes.worker import LaneSpec, run_lane
from dbray.planning.plan import Plan, PlannedSubject

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_JOIN_SECONDS = 15.0


@contextmanager
def open_lanes(
    plan: Plan,
    subjects: Sequence[PlannedSubject],
    count: int,
    scratch: str,
    on_lost: Callable[[str], None],
) -> Iterator[Lanes]:
    """Start lanes on subjects of a plan.

    Args:
        plan: with the number of slots of its lanes.
        subjects: those to train now.
        count: number of lanes.
        scratch: folder in the job's storage for what Ray Train keeps of them.
        on_lost: called from another thread with the reason when a lane is lost; others continue.
    """
    job = plan.job
    resources = job.resources
    queue: Any = ray.remote(LeaseQueue).options(
        num_cpus=0, scheduling_strategy=_on_this_node()
    ).remote(
        list(subjects), resources.max_attempts, resources.lease_seconds, num_lanes=count
    )  # fmt: skip
    use_gpu = hardware().uses_gpus(resources.device)
    specs = [
        LaneSpec(f"lane-{index}", job, plan.base, plan.measure, queue, scratch, use_gpu)
        for index in range(count)
    ]
    lanes = Lanes(queue, specs, on_lost)
    try:
        lanes.start()
        yield lanes
        lanes.join(_JOIN_SECONDS)
    finally:
        # In every case: a cluster that keeps running must not go on with the job.
        lanes.end()


def _on_this_node() -> NodeAffinitySchedulingStrategy:
    """Place an actor on the driver's node, so that the death of another node cannot end the run."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


class Lanes:
    """Lanes, and the queue that they share."""

    def __init__(
        self, queue: Any, specs: Sequence[LaneSpec], on_lost: Callable[[str], None]
    ) -> None:
        self._queue = queue
        self._others = set(placement_group_table())
        self._over = threading.Event()
        self._threads = [_LaneThread(spec, on_lost, self._over) for spec in specs]

    def start(self) -> None:
        """Start all lanes."""
        for thread in self._threads:
            thread.start()

    def snapshots(self) -> Iterator[Snapshot]:
        """Yield progress regularly, with the outcomes since the last one, until all have ended.

        Raises:
            LaneLost: the queue is lost, or no lane is left while subjects wait that none has tried.
        """
        num_seen = 0
        while True:
            # Checked first, so that the snapshot contains what the lanes did before they ended.
            reason = self._why_none_is_left()
            if reason:
                self._ask("abandon", reason)
            snapshot: Snapshot = self._ask("snapshot", num_seen)
            num_seen += len(snapshot.outcomes)
            yield snapshot
            if snapshot.is_done:
                return
            if reason:
                raise LaneLost(reason)
            time.sleep(_POLL_SECONDS)

    def _why_none_is_left(self) -> str | None:
        if any(thread.is_alive() for thread in self._threads):
            return None
        errors = [str(thread.error) for thread in self._threads if thread.error]
        return f"no lane is left: {errors[0] if errors else 'all of them have ended'}"

    def _ask(self, method: str, *args: Any) -> Any:
        try:
            return ray.get(getattr(self._queue, method).remote(*args))
        except RayActorError as exc:
            raise LaneLost(
                "the process that assigns the subjects died, killed or out of memory; what "
                f"is published is kept: run again to continue ({first_line(exc)})"
            ) from exc

    def join(self, seconds: float) -> None:
        """Wait for the lanes to end, for a limited time: some may never have been placed."""
        give_up = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, give_up - time.monotonic()))

    def end(self) -> None:
        """End the lanes that are left, and the queue.

        A thread that still waits for its lane when Ray is shut down would end the whole process.
        """
        self._over.set()
        if any(thread.is_alive() for thread in self._threads):
            with suppress(LaneLost):
                for controller in self._ask("controllers"):
                    ray.kill(controller)
                for room in self._rooms():
                    remove_placement_group(room)
        ray.kill(self._queue)
        self.join(_JOIN_SECONDS)

    def _rooms(self) -> list[PlacementGroup]:
        """What the lanes occupy or wait for: Ray would keep it, and give it, to dead controllers.

        Ray does not tell whose a placement group is, but the Ray job is part of its id.
        """
        ray_job = ray.get_runtime_context().get_job_id()
        return [
            PlacementGroup(ray.PlacementGroupID(bytes.fromhex(name)))
            for name, group in placement_group_table().items()
            if name.endswith(ray_job) and group["state"] != "REMOVED" and name not in self._others
        ]


class _LaneThread(threading.Thread):
    """Runs one lane; keeps the error that ended it."""

    def __init__(
        self, spec: LaneSpec, on_lost: Callable[[str], None], over: threading.Event
    ) -> None:
        super().__init__(name=spec.name, daemon=True)
        self._spec = spec
        self._on_lost = on_lost
        self._over = over
        self.error: LaneLost | None = None
        self._ended_before = self._restarts = 0

    def run(self) -> None:
        """Run the lane until it ends.

        Its limit of failures counts consecutive ones, in which no subject has ended.
        """
        with suppress(RayActorError):  # the queue has ended, and with it the job
            while (error := self._hold()) is not None:
                if self._over.is_set():
                    return
                logger.warning("lane lost lane=%s error=%s", self._spec.name, error)
                self.error = error
                if not self._may_restart(error):
                    self._spec.queue.retire.remote()
                    self._on_lost(f"lost {error}")
                    return

    def _hold(self) -> LaneLost | None:
        """Run the lane once; return why it was lost; its subjects are released then."""
        self._ended_before = self._num_ended()
        try:
            run_lane(self._spec)
        except LaneLost as exc:
            if not self._over.is_set():
                self._free()
            return exc
        return None

    def _free(self) -> None:
        """Free what a lost lane has: its subjects, and the room of its workers."""
        queue, name = self._spec.queue, self._spec.name
        ray.get(queue.release.remote(name))
        room: Any = ray.get(queue.room.remote(name))
        if room is not None:
            remove_placement_group(room)

    def _may_restart(self, error: LaneLost) -> bool:
        if self._num_ended() > self._ended_before:
            self._restarts = 0
            return True
        # Ray Train restarts workers that die, but not those whose node dies while they start: that
        # is an error of its controller.
        self._restarts += 1
        is_of_cluster = isinstance(error.__cause__, ControllerError)
        return is_of_cluster and self._restarts <= self._spec.job.resources.max_lane_failures

    def _num_ended(self) -> int:
        return ray.get(self._spec.queue.num_ended.remote(self._spec.name))
