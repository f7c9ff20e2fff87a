"""A lane: a held group of workers with a warm backbone and engine, one subject after another.

The only Ray Train code. One lane is one `TorchTrainer.fit`; subjects come from the lease queue and
go to the registry, so that a lane may die at any moment and cost only the subject in its hands.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
from PIL import Image
from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from safetensors.torch import save as save_tensors
from torch import Tensor

from dbray import bases, metrics
from dbray.bases import Backbone, Base
from dbray.errors import DbrayError, Diverged, LaneLost, SubjectError, TrainError
from dbray.lanes.checkpoint import Checkpoint
from dbray.method.engine import Engine, device_is_lost, make_engine, translated
from dbray.method.loop import (
    Latents,
    LossPoint,
    Progress,
    Share,
    TrainingData,
    encode_subject,
    finetune,
    instance_prompts,
)
from dbray.method.losses import NoiseSchedule
from dbray.planning.plan import PlannedSubject
from dbray.records.models import ModelRecord, Registry
from dbray.records.prior_sets import load_images
from dbray.records.results import Failure
from dbray.spec.job import Job
from dbray.spec.sections import fill_prompt, utc_now
from dbray.storage.store import Store, digest, read_uri
from dbray.subjects import images

logger = logging.getLogger(__name__)

NUM_WARM_PRIORS = 16
"""PriorSets whose latents a lane keeps: 200 images of 64 x 64 x 4 latents are 26 MB."""
_BEAT_SECONDS = 1.0
_WAIT_SECONDS = 0.5
_ENCODED_AT_ONCE = 16
_VERSIONED = ("dbray", "torch", "diffusers", "transformers", "deepspeed", "ray")


@dataclass(frozen=True)
class LaneSpec:
    """What a lane's workers need to know; crosses to them once."""

    name: str
    job: Job
    base: Base
    queue: Any
    """Handle of the actor that holds the LeaseQueue."""
    scratch: str
    """Folder in the job's storage for what Ray Train keeps of the lane."""
    use_gpu: bool


def run_lane(spec: LaneSpec) -> None:
    """Hold one lane until no subject waits. Returns when its work is done.

    Raises:
        LaneLost: when its workers died more often than `max_lane_failures`.
    """
    # Read by Ray in this process; its defaults wait two seconds at every turn, and keep a process
    # per lane that watches for preemption, of which a subject that is leased anew need not know.
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
        ),
    )
    try:
        trainer.fit()
    except Exception as exc:
        raise LaneLost(f"{spec.name}: {_reason(exc)}") from exc


def _reason(exc: Exception) -> str:
    """What the first worker to fail said, without the traceback that Ray puts before it."""
    failures = exc.worker_failures.values() if isinstance(exc, WorkerGroupError) else [exc]
    lines = str(next(iter(failures), exc)).strip().splitlines()
    frames = [number for number, line in enumerate(lines) if line.startswith("  ")]
    return "\n".join(lines[frames[-1] + 1 :] if frames else lines) or type(exc).__name__


def _work(config: dict[str, Any]) -> None:
    """What every worker of the lane runs."""
    spec: LaneSpec = config["spec"]
    torch.set_num_threads(spec.job.resources.threads_per_worker)
    _Worker(spec).run()


@dataclass
class _Clock:
    """What one attempt at a subject took: seconds by phase, and optimiser steps."""

    seconds: dict[str, float] = field(default_factory=dict)
    steps: int = 0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        elapsed = time.monotonic() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + elapsed
        metrics.phase_seconds().observe(elapsed, {"phase": name})


class _Worker:
    """One rank of a lane, with everything that stays warm between subjects."""

    def __init__(self, spec: LaneSpec) -> None:
        context = ray.train.get_context()
        self.spec = spec
        self.share = Share(context.get_world_rank(), context.get_world_size())
        self.device = ray.train.torch.get_device()
        self.store = Store(spec.job.storage)
        self.recipe = spec.job.recipe
        self.backbone: Backbone = bases.load(bases.here(spec.base), self.recipe, str(self.device))
        self.engine: Engine = make_engine(
            self.backbone.trained, self.recipe, spec.job.resources.zero_stage, self.device
        )
        schedule = NoiseSchedule(self.backbone.alphas_cumprod, self.backbone.prediction)
        self.schedule = schedule.to(self.device)
        self.priors: OrderedDict[str, Latents] = OrderedDict()

    @property
    def leads(self) -> bool:
        """Whether this rank speaks for the lane."""
        return self.share.rank == 0

    def run(self) -> None:
        """Train subjects until none waits."""
        queue = self.spec.queue
        if self.leads:
            ray.get(queue.enter.remote(self.spec.name))
        while True:
            clock = _Clock()
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
        """The next subject; rank 0 asks and tells the others. None when all have ended."""
        # Waiting for others' last subjects: should their lane die, this one takes over.
        while True:
            answer: tuple[tuple[PlannedSubject, int] | None, bool] = (None, False)
            if self.leads:
                answer = ray.get(self.spec.queue.lease.remote(self.spec.name))
            # At every turn: a wait in a broadcast has a time limit.
            leased, is_done = self.share.of_first(answer)
            if leased is not None or is_done:
                return leased
            time.sleep(_WAIT_SECONDS)

    def _train_safely(self, planned: PlannedSubject, clock: _Clock) -> Failure | None:
        """Train one subject; one that fails does not stop the lane.

        What each rank does by itself comes first, and then all agree: from there on they work
        together, and one that is missing would leave the others waiting.
        """
        data = failure = None
        try:
            with clock.phase("encode"), translated(self.device):
                data = self._encode(planned, self._beat(planned))
        except Exception as exc:  # noqa: BLE001 - a subject must never stop the job
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
        """Say what became of the subject.

        Raises:
            LaneLost: ranks or device are out of order, which the queue knows by now. The workers
                of the lane end with it, and Ray Train starts them anew.
        """
        name = planned.subject.id
        must_end = out_of_step or self.engine.broken or device_is_lost(self.device, exc)
        if isinstance(exc, DbrayError):
            logger.warning("subject failed id=%s error=%s", name, exc)
            failure = Failure.of(exc)
        else:
            logger.error("subject failed id=%s", name, exc_info=exc)
            # What the device or another rank did is not the subject's fault: it is tried again.
            kind = LaneLost if must_end else TrainError
            failure = Failure.of(kind(f"{type(exc).__name__}: {exc}"))
        if must_end:
            self._report(planned, failure)
            raise LaneLost(f"{name}: {failure.message}") from exc
        return failure

    def _carry_out(self, planned: PlannedSubject, clock: _Clock, data: TrainingData) -> None:
        """What the ranks do together: the steps, and what comes of them."""
        resources = self.spec.job.resources
        with clock.phase("reset"):
            self.engine.reset()
            checkpoint = Checkpoint(
                self.store, self.spec.job.id, planned.revision, self.share, resources.zero_stage
            )
            with self._beat(planned).meanwhile():
                resume = checkpoint.restore(self.engine)
        clock.steps = self.recipe.steps - resume.step
        beat = self._beat(planned, resume.step)
        every = resources.checkpoint_every

        def on_step(progress: Progress) -> None:
            beat(progress.step)
            if every and progress.step % every == 0 and progress.step < self.recipe.steps:
                state = self.engine.state()  # waits for the steps, and one that hangs is no life
                with beat.meanwhile():
                    checkpoint.save(state, progress)

        with clock.phase("train"):
            curve = finetune(
                self.engine,
                self.schedule,
                data,
                self.recipe,
                share=self.share,
                resume=resume,
                on_step=on_step,
            )
        beat.now(self.recipe.steps)
        with clock.phase("publish"), beat.meanwhile():
            self._publish(planned, curve, clock)
            checkpoint.remove()

    def _beat(self, planned: PlannedSubject, step: int = 0) -> _Beat:
        return _Beat(self.spec.queue, self.spec.name, planned.subject.id, self.leads, step)

    def _encode(self, planned: PlannedSubject, beat: _Beat) -> TrainingData:
        """Read and encode the subject's images, and embed its prompts, with base weights."""
        subject = planned.subject
        with beat.meanwhile():
            views = self._read(planned)
        latents, views_of_image = encode_subject(self.backbone, views, self.recipe)
        prompts = instance_prompts(
            planned.identifier, subject.class_noun, subject.captions, len(views)
        )
        class_prompt = fill_prompt(self.spec.job.prior.prompt, subject.class_noun)
        return TrainingData(
            subject_id=subject.id,
            views=latents,
            views_of_image=views_of_image,
            instance_text_NL=self.backbone.condition(prompts),
            prior=self._prior(planned.prior_digest, beat),
            prior_text_1L=self.backbone.condition([class_prompt]),
        )

    def _read(self, planned: PlannedSubject) -> list[list[np.ndarray]]:
        """Read the subject's images; return the crops of each."""
        views = []
        for uri, expected in zip(planned.subject.images, planned.image_digests, strict=True):
            data = read_uri(uri, images.MAX_IMAGE_BYTES)
            image = images.decode(data, uri)
            if digest(data) != expected:
                raise SubjectError(f"{uri} has changed since the job was validated; run again")
            views.append(images.views(image, self.backbone.resolution, self.recipe.crop))
        return views

    def _prior(self, prior_digest: str | None, beat: _Beat) -> Latents | None:
        """Latents of a PriorSet, encoded once per lane."""
        if prior_digest is None:
            return None
        if prior_digest not in self.priors:
            with beat.meanwhile():
                pixels = load_images(self.store, prior_digest)
            resolution = self.backbone.resolution
            if pixels.shape[1:3] != (resolution, resolution):
                pixels = np.concatenate(
                    [images.views(Image.fromarray(one), resolution, "centre") for one in pixels]
                )
            self.priors[prior_digest] = self._encode_slowly(pixels, beat)
        self.priors.move_to_end(prior_digest)
        if len(self.priors) > NUM_WARM_PRIORS:
            self.priors.popitem(last=False)
        return self.priors[prior_digest]

    def _encode_slowly(self, pixels: np.ndarray, beat: _Beat) -> Latents:
        """Encode many images, showing in between that the lane lives."""
        means, deviations = [], []
        for start in range(0, len(pixels), _ENCODED_AT_ONCE):
            mean, deviation = self.backbone.encode(pixels[start : start + _ENCODED_AT_ONCE])
            means.append(mean)
            deviations.append(deviation)
            beat(0)
        return Latents(torch.cat(means), torch.cat(deviations))

    def _publish(
        self, planned: PlannedSubject, curve: tuple[LossPoint, ...], clock: _Clock
    ) -> None:
        weights = self.engine.weights()
        if not self.leads:
            return
        dtype = torch.float16 if self.recipe.publish_precision == "fp16" else torch.float32
        parts = _by_part(weights, dtype)
        if not all(bool(t.isfinite().all()) for part in parts.values() for t in part.values()):
            raise Diverged("the weights are not finite; lower learning_rate, or use precision and "
                           "publish_precision fp32")  # fmt: skip
        files = {f"{part}.safetensors": save_tensors(tensors) for part, tensors in parts.items()}
        record = _record(self.spec, planned, curve, tuple(files), clock)
        Registry(self.store).publish(record, files)


def _by_part(weights: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, dict[str, Tensor]]:
    """Split 'unet.conv_in.weight' into part and name."""
    parts: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in weights.items():
        part, name = full_name.split(".", 1)
        parts.setdefault(part, {})[name] = tensor.to(dtype).contiguous()
    return parts


def _record(
    spec: LaneSpec,
    planned: PlannedSubject,
    curve: tuple[LossPoint, ...],
    files: tuple[str, ...],
    clock: _Clock,
) -> ModelRecord:
    subject, job = planned.subject, spec.job
    return ModelRecord(
        id=subject.id,
        revision=planned.revision,
        fingerprint=planned.fingerprint,
        class_noun=subject.class_noun,
        identifier=planned.identifier,
        base=spec.base.name,
        base_revision=job.base_revision,
        base_digest=spec.base.digest,
        recipe=job.recipe,
        prior=job.prior,
        prior_digest=planned.prior_digest,
        seed=job.recipe.seed,
        image_digests=planned.image_digests,
        captions=subject.captions,
        versions={name: metadata.version(name) for name in _VERSIONED},
        timings={name: round(seconds, 4) for name, seconds in clock.seconds.items()},
        steps=job.recipe.steps,
        loss=tuple((p.step, p.loss, p.instance_loss, p.prior_loss) for p in curve),
        files=files,
        created_at=utc_now(),
        job_id=job.id,
        tenant=job.tenant,
    )


class _Beat:
    """Tells the queue now and then that the lane is alive, without waiting for an answer.

    Called step by step, so that a lane whose device hangs falls silent.
    """

    def __init__(self, queue: Any, lane: str, subject_id: str, leads: bool, step: int) -> None:
        self._queue, self._lane, self._subject_id, self._leads = queue, lane, subject_id, leads
        self._last_time, self._last_step = time.monotonic(), step

    def __call__(self, step: int) -> None:
        if time.monotonic() - self._last_time > _BEAT_SECONDS:
            self.now(step)

    def now(self, step: int) -> None:
        """Tell it, however short ago it was told."""
        if self._leads:
            if step > self._last_step:  # a counter takes no zero
                metrics.train_steps().inc(step - self._last_step)
            self._last_time, self._last_step = time.monotonic(), step
            self._queue.beat.remote(self._lane, self._subject_id, step)

    @contextmanager
    def meanwhile(self) -> Iterator[None]:
        """Go on telling it from a thread of its own while this one waits for storage."""
        over = threading.Event()

        def tell() -> None:
            while not over.wait(_BEAT_SECONDS):
                self.now(self._last_step)

        thread = threading.Thread(target=tell, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
