"""A lane: a group of workers that keep a backbone and an engine warm, and train subjects in turn.

The only Ray Train code. One lane is one `TorchTrainer.fit`. Subjects come from the lease queue and
models go to the registry, so the death of a lane costs only the subject that it is training.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback, WorkerGroupError
from torch import Tensor

from dbray import bases
from dbray.bases import Base, Compute
from dbray.errors import DbrayError, Diverged, LaneLost, TrainError
from dbray.lanes.beat import Beat, Clock
from dbray.lanes.checkpoint import Checkpoint
from dbray.lanes.material import Material
from dbray.lanes.publish import Publisher
from dbray.method.methods import method_of
from dbray.planning.plan import PlannedSubject
from dbray.records.results import Failure
from dbray.spec.job import Job
from dbray.storage.store import Store
from dbray.training.device import device_is_lost, translated
from dbray.training.engine import Engine, make_engine
from dbray.training.loop import Progress, Share, TrainingData, finetune
from dbray.training.teacher import teach

logger = logging.getLogger(__name__)

_WAIT_SECONDS = 0.5


@dataclass(frozen=True)
class LaneSpec:
    """What a lane's workers are started with."""

    name: str
    job: Job
    base: Base
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
    # process per lane to watch for preemption; the subject of a lost lane is leased again anyway.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    resources = spec.job.resources
    per_worker = {"CPU": float(resources.threads_per_worker)}
    filesystem, folder = Store(spec.job.storage).arrow(spec.scratch)
    trainer = ray.train.torch.TorchTrainer(
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
            callbacks=[_ReleaseOnDeath(spec)],
        ),
    )
    try:
        trainer.fit()
    except Exception as exc:
        raise LaneLost(f"{spec.name}: {_reason(exc)}") from exc


class _ReleaseOnDeath(UserCallback):
    """Releases the lane's subject as soon as one of its workers is dead.

    Ray starts new workers once there is room for them, which may never be the case on a cluster
    that has lost a node. Runs in the controller, which Ray keeps on the driver's node.
    """

    def __init__(self, spec: LaneSpec) -> None:
        self._queue, self._lane = spec.queue, spec.name

    def after_exception(self, *_: Any, **__: Any) -> None:
        """Called by Ray Train before it starts new workers."""
        self._queue.release.remote(self._lane)


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
    """One rank of a lane, and everything that it keeps between subjects."""

    def __init__(self, spec: LaneSpec) -> None:
        context = ray.train.get_context()
        self.spec = spec
        self.share = Share(context.get_world_rank(), context.get_world_size())
        self.device = ray.train.torch.get_device()
        self.store = Store(spec.job.storage)
        self.recipe = spec.job.recipe
        recipe = self.recipe
        compute = Compute(
            str(self.device),
            recipe.precision,
            recipe.resolution,
            recipe.gradient_checkpointing,
            visits=True,
        )
        self.base = bases.find_on_this_node(spec.base)
        backbone = bases.load(self.base, compute)
        self.method = method_of(recipe.method)
        network = self.method.network(backbone, recipe)
        rates = self.method.rates(network, recipe)
        self.after_step = self.method.after_step if rates else None
        self.engine: Engine = make_engine(network, recipe, spec.job.resources, self.device, rates)
        self.schedule = backbone.schedule.to(self.device)
        self.material = Material(spec.job, backbone)
        self.publisher = Publisher(spec.job, spec.base)

    @property
    def leads(self) -> bool:
        """Whether this rank reports for the lane."""
        return self.share.rank == 0

    def run(self) -> None:
        """Train subjects until none is left."""
        queue = self.spec.queue
        if self.leads:
            ray.get(queue.release.remote(self.spec.name))
        while True:
            clock = Clock()
            with clock.phase("lease"):
                leased = self._lease()
            if leased is None:
                return
            planned, attempt = leased
            logger.info("subject leased id=%s attempt=%d", planned.subject.id, attempt)
            failure = self._train_safely(planned, clock)
            if not self.leads:
                continue
            if failure is None:
                ray.get(queue.complete.remote(planned.subject.id, clock.seconds, clock.steps))
            else:
                self._report(planned, failure)

    def _report(self, planned: PlannedSubject, failure: Failure) -> None:
        ray.get(self.spec.queue.fail.remote(self.spec.name, planned.subject.id, failure))

    def _lease(self) -> tuple[PlannedSubject, int] | None:
        """The next subject, which rank 0 requests for all ranks. None when all have ended."""
        # Other lanes have the last subjects: if one of these lanes dies, this one takes over.
        while True:
            answer: tuple[tuple[PlannedSubject, int] | None, bool] = (None, False)
            if self.leads:
                answer = ray.get(self.spec.queue.lease.remote(self.spec.name))
            # Broadcast in every round: waiting in a broadcast has a time limit.
            leased, is_done = self.share.of_first(answer)
            if leased is not None or is_done:
                return leased
            time.sleep(_WAIT_SECONDS)

    def _train_safely(self, planned: PlannedSubject, clock: Clock) -> Failure | None:
        """Train one subject; one that fails does not stop the lane.

        Each rank first does what it can alone, and then all ranks compare: from there on they work
        together, and a rank that is missing would leave the others waiting.
        """
        data = failure = None
        try:
            with clock.phase("encode"), translated(self.device):
                data = self.material.of(planned, self._beat(planned))
        except Exception as exc:  # noqa: BLE001 - one subject must not stop the job
            failure = self._failure_of(planned, exc, out_of_step=False)
        failure = next((one for one in self.share.gather(failure) if one is not None), None)
        if data is None or failure is not None:
            return failure
        try:
            self._carry_out(planned, clock, data)
        except Exception as exc:  # noqa: BLE001 - as above
            out_of_step = self.share.world_size > 1 and not isinstance(exc, Diverged)
            return self._failure_of(planned, exc, out_of_step)
        return None

    def _failure_of(self, planned: PlannedSubject, exc: Exception, out_of_step: bool) -> Failure:
        """The failure to report for a subject.

        Raises:
            LaneLost: the ranks are out of step or the device is lost; the failure is reported. The
                workers of the lane end, and Ray Train starts new ones.
        """
        name = planned.subject.id
        must_end = out_of_step or self.engine.broken or device_is_lost(self.device, exc)
        if isinstance(exc, DbrayError):
            logger.warning("subject failed id=%s error=%s", name, exc)
            failure = Failure.of(exc)
        else:
            logger.error("subject failed id=%s", name, exc_info=exc)
            # An error of the device or of another rank is not the subject's fault: it is retried.
            kind = LaneLost if must_end else TrainError
            failure = Failure.of(kind(f"{type(exc).__name__}: {exc}"))
        if must_end:
            self._report(planned, failure)
            raise LaneLost(f"{name}: {failure.message}") from exc
        return failure

    def _carry_out(self, planned: PlannedSubject, clock: Clock, data: TrainingData) -> None:
        """Train and publish one subject: what the ranks do together."""
        resources = self.spec.job.resources
        with clock.phase("reset"):
            self.engine.reset()
            begin = self.method.begin(self.engine.module, self.base, planned.identifier)
            self.engine.assign(begin)
            checkpoint = Checkpoint(
                self.store, self.spec.job.id, planned.revision, self.share, resources.zero_stage
            )
            with self._beat(planned).meanwhile():
                resume = checkpoint.restore(self.engine)
        clock.steps = self.recipe.steps - resume.step
        beat = self._beat(planned, resume.step)
        if planned.is_taught:
            with clock.phase("teacher"):
                data = self._teach(data, begin, resume, beat)
        every = resources.checkpoint_every

        def on_step(step: int, progress: Callable[[], Progress]) -> None:
            beat(step)
            if every and step % every == 0 and step < self.recipe.steps:
                # Blocks on the device: no beats meanwhile, or a hanging device would seem alive.
                state, reached = self.engine.state(), progress()
                with beat.meanwhile():
                    checkpoint.save(state, reached)

        with clock.phase("train"):
            curve = finetune(
                self.engine,
                self.schedule,
                data,
                self.recipe,
                share=self.share,
                resume=resume,
                on_step=on_step,
                after_step=self.after_step,
            )
        beat.now(self.recipe.steps)
        with clock.phase("publish"), beat.meanwhile():
            weights = self.engine.weights()
            if self.leads:
                files = self.method.publish(self.engine.module, weights, self.recipe)
                self.publisher.publish(planned, files, curve, clock)
            checkpoint.remove()

    def _teach(
        self, data: TrainingData, begin: Mapping[str, Tensor], resume: Progress, beat: Beat
    ) -> TrainingData:
        """Ask the untouched base for its predictions, in the place of what was restored."""
        state = self.engine.state() if resume.step else None
        if state is not None:
            self.engine.reset()
            self.engine.assign(begin)
        taught = teach(
            self.engine,
            self.schedule,
            data,
            self.recipe,
            share=self.share,
            first=resume.step,
            after_lesson=lambda: beat(resume.step),
        )
        if state is not None:
            self.engine.load_state(state)
        return taught

    def _beat(self, planned: PlannedSubject, step: int = 0) -> Beat:
        return Beat(self.spec.queue, self.spec.name, planned.subject.id, self.leads, step)
