"""The thread that uses the device: it takes batches, swaps weights, and samples.

The images of a batch share the resident weights: those of their model or, if they are of several
low-rank models, those of the base, beside which every row uses its own model's factors
(`method.mixing`). Owns the order of swap, sampling and cancellation; uses neither HTTP nor Ray
Serve.
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
from dbray.bases.condition import Condition
from dbray.bases.generate import Sampling, encode, finish, generate, sample, scale_of
from dbray.bases.resident import Resident
from dbray.errors import DbrayError
from dbray.method.mixing import mixed
from dbray.serving.messages import BASE, BROKEN, TIMED_OUT, Begun, Refusal
from dbray.serving.meters import DeviceMeters
from dbray.serving.replica.fair_queue import Batch, FairQueue, Request, is_mixed
from dbray.serving.replica.mixture import encode_each, part_of
from dbray.serving.replica.weights import load_refusal
from dbray.spec.sections import Sampler

_log = logging.getLogger(__name__)

_IDLE_SECONDS = 1.0
UNKNOWN = "?"
"""The resident weights are half written, bad or unverified."""


class _Cancelled(Exception):
    """All requests of a batch are over."""


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
    """Samples the batches of a queue, on a thread of its own."""

    def __init__(
        self,
        backbone: Backbone,
        queue: FairQueue,
        meters: DeviceMeters,
        on_beat: Callable[[], None],
        sampler: Sampler,
    ) -> None:
        self.resident = BASE
        self._backbone = backbone
        self._resident: Resident = backbone.resident
        self._queue = queue
        self._meters = meters
        self._on_beat = on_beat
        self._probed = Sampling(sampler, steps=1)
        self._errands: list[tuple[Callable[[], None], Future[None]]] = []
        self._beat = time.monotonic()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="painter", daemon=True)

    def start(self) -> None:
        """Take one real step with the base, then start the thread."""
        self._probe()
        self._thread.start()

    def _probe(self) -> None:
        generate(self._backbone, ["a photo"], [0], self._probed)

    def stop(self) -> None:
        """End after the present batch."""
        self._stopping = True
        self._queue.wake()
        if self._thread.is_alive():
            self._thread.join(_IDLE_SECONDS * 10)

    def seconds_silent(self) -> float:
        """Time since the thread last reported; infinite if it is dead."""
        return time.monotonic() - self._beat if self._thread.is_alive() else float("inf")

    def forget(self, chosen: Callable[[str], bool]) -> Future[None]:
        """Restore the base's weights, if those of a chosen key are resident."""
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
            if not all(request.over for request, _ in batch):
                self._serve(batch)

    def _serve(self, batch: Batch) -> None:
        started, cost = time.monotonic(), 0.0
        refusal: Refusal | None = None
        try:
            self._paint(batch)
            cost = sum(request.cost for request, _ in batch)
        except _Cancelled:
            pass
        except DbrayError as exc:  # the weights are damaged
            refusal = load_refusal(exc, batch[0][0].ask.key)
        except torch.cuda.OutOfMemoryError:
            refusal = Refusal(503, "out_of_memory", "The device is out of memory.", retry_after=5)
        except Exception as exc:  # noqa: BLE001 - the next batch may be served
            refusal = BROKEN
            # Messages of libraries may quote a prompt: log only the type and the place.
            place = "".join(traceback.format_tb(exc.__traceback__))
            _log.error("sampling failed: %s\n%s", type(exc).__name__, place)
        finally:
            self._queue.done(cost, time.monotonic() - started)
        if refusal or not all(_is_settled(request) for request, _ in batch):
            self.resident = UNKNOWN
        if refusal:
            for request, _ in batch:
                request.refuse(refusal)
        if refusal is BROKEN:
            self._recover()

    def _recover(self) -> None:
        """Check whether the device still works. If not, the thread ends, and then the replica.

        After some errors every call of CUDA fails, until the process ends.
        """
        try:
            self._resident.put(None)
            self._probe()
            self.resident = BASE
        except Exception as exc:  # noqa: BLE001 - after any error, nothing can be served here
            _log.error("the device does not work any more: %s", type(exc).__name__)
            self._stopping = True

    def _paint(self, batch: Batch) -> None:
        if is_mixed(batch, self._backbone.is_exact):
            self._paint_mixed(batch)
            return
        started, lead = time.monotonic(), batch[0][0]
        swapped = self._swap(lead)
        self._begin(batch, started, swapped)
        prompts = [request.ask.prompt for request, _ in batch]
        self._sample(batch, encode(self._backbone, prompts, lead.sampling))

    def _paint_mixed(self, batch: Batch) -> None:
        started, family = time.monotonic(), self._backbone.base.family
        self.resident = UNKNOWN
        batch, condition = encode_each(self._backbone, batch)
        self.resident = BASE
        if condition is None:
            return
        members = [part_of(request) for request, _ in batch]
        repeats = len(condition) // len(members)
        with mixed(self._backbone.models[family.denoiser], members, repeats):
            self._begin(batch, started, swapped=True)
            self._sample(batch, condition)
        self._meters.mixed.inc()

    def _sample(self, batch: Batch, condition: Condition) -> None:
        lead = batch[0][0]
        seeds = [request.ask.seeds[index] for request, index in batch]
        scale = scale_of(self._backbone.base, lead.sampling)
        width, height = lead.size
        size = width // scale, height // scale
        watch = self._watch(batch)
        pixels = sample(self._backbone, condition, seeds, lead.sampling, watch, size)
        prompts = [request.ask.prompt for request, _ in batch]
        pixels = finish(self._backbone, prompts, pixels, seeds, lead.sampling, watch)
        self._meters.batch.observe(len(batch))
        self._meters.images.inc(len(batch))
        for (request, index), image in zip(batch, pixels, strict=True):
            if _settle(request):
                request.emit(Painting(index, image))

    def _swap(self, request: Request) -> bool:
        if request.ask.key == self.resident:
            return False
        self.resident = UNKNOWN
        self._resident.put(request.hold.value.weights if request.hold else None)
        self.resident = request.ask.key
        self._meters.swaps.inc()
        return True

    def _begin(self, batch: Batch, started: float, swapped: bool) -> None:
        """Tell each caller that its first image is being sampled."""
        seconds = time.monotonic() - started
        for request in dict.fromkeys(request for request, _ in batch):
            if request.hold and swapped:
                request.hold.rise()
            if not request.begun:
                request.begun = True
                request.emit(self._begun(request, started, seconds, swapped))

    def _begun(self, request: Request, started: float, seconds: float, swapped: bool) -> Begun:
        load_seconds = seconds + (request.hold.load_seconds if request.hold else 0.0)
        source = request.hold.source if request.hold else "resident"
        if source in ("device", "ram") and not swapped:
            source = "resident"
        queue_seconds = max(0.0, started + seconds - request.arrived - load_seconds)
        self._meters.queue_seconds.observe(queue_seconds)
        return Begun(source, load_seconds * 1000, queue_seconds * 1000, *request.size, request.read)

    def _watch(self, batch: Batch) -> Callable[[int, Tensor], None]:
        num_steps = batch[0][0].sampling.steps
        num_taken = 0

        def on_step(step: int, latents: Tensor) -> None:
            nonlocal num_taken
            num_taken += 1
            self._beat = now = time.monotonic()
            for request, _ in batch:
                if now > request.deadline:
                    request.refuse(TIMED_OUT)
            if all(request.over for request, _ in batch):
                raise _Cancelled
            if num_taken < num_steps:  # only of the first stage
                self._sketch(batch, step, num_steps, latents)

        return on_step

    def _sketch(self, batch: Batch, step: int, num_steps: int, latents: Tensor) -> None:
        """Send the unfinished images that were requested, evenly spread over the steps."""
        due = []
        for row, (request, index) in enumerate(batch):
            parts = request.ask.partial_images + 1
            number = (step + 1) * parts // num_steps
            is_due = not request.over and number > step * parts // num_steps
            if is_due and _settle(request):
                due.append((row, request, index, number - 1))
        if due:
            pixels = self._backbone.decode(latents[[row for row, *_ in due]])
            for (_, request, index, number), image in zip(due, pixels, strict=True):
                request.emit(Sketch(index, number, image))


def _settle(request: Request) -> bool:
    """Wait until a request's weights are verified; refuse it if they are damaged.

    Return whether an image made with them may be sent.
    """
    try:
        if request.hold:
            request.hold.settle()
    except Exception as exc:  # noqa: BLE001 - the other models of the batch may be served
        request.refuse(load_refusal(exc, request.ask.key))
    return not request.over


def _is_settled(request: Request) -> bool:
    return request.hold is None or request.hold.is_settled
