"""The one thread that uses the device: it takes batches, swaps weights, and samples.

One subject's weights are in the module at a time; every image of a batch has the same. Owns the
order of swap, sampling and cancellation; knows neither HTTP nor Ray Serve.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dbray.bases import Backbone
from dbray.bases.resident import Resident
from dbray.errors import DbrayError
from dbray.method.generate import Sampling, generate
from dbray.serving.messages import BASE, BROKEN, TIMED_OUT, Begun, Refusal
from dbray.serving.meters import DeviceMeters
from dbray.serving.replica.fair_queue import Batch, FairQueue, Job
from dbray.serving.replica.weights import load_refusal

_log = logging.getLogger(__name__)

_IDLE_SECONDS = 1.0
UNKNOWN = "?"
"""In the module is a half of two, or what turned out bad, or what was never verified."""


class _Cancelled(Exception):
    """Nobody waits for this batch any more."""


@dataclass(frozen=True)
class Sketch:
    """Pixels of an unfinished image."""

    index: int
    number: int
    pixels: np.ndarray


@dataclass(frozen=True)
class Painting:
    """Pixels of a finished image."""

    index: int
    pixels: np.ndarray


class Painter:
    """Samples what the queue gives, on a thread of its own."""

    def __init__(
        self,
        backbone: Backbone,
        queue: FairQueue,
        meters: DeviceMeters,
        on_beat: Callable[[], None],
    ) -> None:
        self.resident = BASE
        self._backbone = backbone
        self._resident: Resident = backbone.resident
        self._queue = queue
        self._meters = meters
        self._on_beat = on_beat
        self._errands: list[tuple[Callable[[], None], Future[None]]] = []
        self._beat = time.monotonic()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="painter", daemon=True)

    def start(self) -> None:
        """Take one real step with the base, then begin."""
        self._probe()
        self._thread.start()

    def _probe(self) -> None:
        generate(self._backbone, ["a photo"], [0], Sampling(steps=1))

    def stop(self) -> None:
        """End after the batch at hand."""
        self._stopping = True
        self._queue.wake()
        if self._thread.is_alive():
            self._thread.join(_IDLE_SECONDS * 10)

    def seconds_silent(self) -> float:
        """Time since the thread last showed that it lives; infinite if it is dead."""
        return time.monotonic() - self._beat if self._thread.is_alive() else float("inf")

    def forget(self, chosen: Callable[[str], bool]) -> Future[None]:
        """Put the base's weights back, if those of a chosen key are in the module."""
        done: Future[None] = Future()
        self._errands.append((lambda: self._clear(chosen), done))
        self._queue.wake()
        return done

    def _clear(self, chosen: Callable[[str], bool]) -> None:
        if self.resident == UNKNOWN or (self.resident != BASE and chosen(self.resident)):
            self._resident.put(None)
            self.resident = BASE

    def _run(self) -> None:
        while not self._stopping:
            self._beat = time.monotonic()
            batch = self._queue.take(self.resident, _IDLE_SECONDS)
            while self._errands:
                errand, done = self._errands.pop(0)
                errand()
                done.set_result(None)
            self._on_beat()
            if not all(job.over for job, _ in batch):
                self._serve(batch)

    def _serve(self, batch: Batch) -> None:
        started, work = time.monotonic(), 0.0
        refusal: Refusal | None = None
        try:
            self._paint(batch)
            work = sum(job.work for job, _ in batch)
        except _Cancelled:
            if not all(job.lease is None or job.lease.is_settled for job, _ in batch):
                self.resident = UNKNOWN
        except DbrayError as exc:  # the weights turned out not to be what was published
            refusal = load_refusal(exc, batch[0][0].ask.key)
        except torch.cuda.OutOfMemoryError:
            refusal = Refusal(503, "out_of_memory", "The device is out of memory.", retry_after=5)
        except Exception as exc:  # noqa: BLE001 - whatever it is, the next batch may be served
            refusal = BROKEN
            # Foreign messages may quote a prompt: the log gets the kind and the place only.
            place = "".join(traceback.format_tb(exc.__traceback__))
            _log.error("sampling failed: %s\n%s", type(exc).__name__, place)
        finally:
            self._queue.done(work, time.monotonic() - started)
        if refusal:
            self.resident = UNKNOWN
            for job, _ in batch:
                job.refuse(refusal)
        if refusal is BROKEN:
            self._recover()

    def _recover(self) -> None:
        """See whether the device still works. If not, the thread ends, and so does the replica.

        After some errors CUDA fails whatever it is asked, until its process ends.
        """
        try:
            self._resident.put(None)
            self._probe()
            self.resident = BASE
        except Exception as exc:  # noqa: BLE001 - whatever it is, nothing can be served here
            _log.error("the device does not work any more: %s", type(exc).__name__)
            self._stopping = True

    def _paint(self, batch: Batch) -> None:
        lead = batch[0][0]
        begun_at = time.monotonic()
        swapped = self._swap(lead)
        swap_seconds = time.monotonic() - begun_at
        for job in dict.fromkeys(job for job, _ in batch):
            if not job.begun:
                self._begin(job, begun_at, swap_seconds, swapped)
        prompts = [job.ask.prompt for job, _ in batch]
        seeds = [job.ask.seeds[index] for job, index in batch]
        watch = self._watch(batch)
        pixels = generate(self._backbone, prompts, seeds, lead.sampling, watch, lead.size)
        self._meters.batch.observe(len(batch))
        self._meters.images.inc(len(batch))
        _settle(batch)
        for (job, index), image in zip(batch, pixels, strict=True):
            job.emit(Painting(index, image))

    def _swap(self, job: Job) -> bool:
        if job.ask.key == self.resident:
            return False
        self.resident = UNKNOWN
        self._resident.put(job.lease.value.weights if job.lease else None)
        if job.lease:
            job.lease.rise()
        self.resident = job.ask.key
        self._meters.swaps.inc()
        return True

    def _begin(self, job: Job, now: float, swap_seconds: float, swapped: bool) -> None:
        job.begun = True
        load_seconds = swap_seconds + (job.lease.load_seconds if job.lease else 0.0)
        source = job.lease.source if job.lease else "resident"
        if source in ("device", "ram") and not swapped:
            source = "resident"
        queue_seconds = max(0.0, now + swap_seconds - job.arrived - load_seconds)
        self._meters.queue_seconds.observe(queue_seconds)
        job.emit(Begun(source, load_seconds * 1000, queue_seconds * 1000, *job.size))

    def _watch(self, batch: Batch) -> Callable[[int, Tensor], None]:
        num_steps = batch[0][0].sampling.steps

        def on_step(step: int, latents: Tensor) -> None:
            self._beat = now = time.monotonic()
            for job, _ in batch:
                if now > job.deadline:
                    job.refuse(TIMED_OUT)
            if all(job.over for job, _ in batch):
                raise _Cancelled
            if step + 1 < num_steps:
                self._sketch(batch, step, num_steps, latents)

        return on_step

    def _sketch(self, batch: Batch, step: int, num_steps: int, latents: Tensor) -> None:
        """Send unfinished images where they were asked for, evenly spread over the steps."""
        due = []
        for row, (job, index) in enumerate(batch):
            parts = job.ask.partial_images + 1
            number = (step + 1) * parts // num_steps
            if not job.over and number > step * parts // num_steps:
                due.append((row, job, index, number - 1))
        if due:
            _settle(batch)
            pixels = self._backbone.decode(latents[[row for row, *_ in due]])
            for (_, job, index, number), image in zip(due, pixels, strict=True):
                job.emit(Sketch(index, number, image))


def _settle(batch: Batch) -> None:
    """Make sure that the weights are what was published, before anything made with them leaves."""
    for job, _ in batch:
        if job.lease:
            job.lease.settle()
