"""The model deployment: a warm base, a cache of subjects' weights, and one thread on the device.

Owns the life of a request within a replica: queued while its weights are loaded, sampled, encoded;
and withdrawn as soon as its caller stops waiting.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import AsyncGenerator, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import torch

from dbray import bases
from dbray.bases import Compute
from dbray.bases.defaults import fill_super_resolution
from dbray.bases.generate import Sampling, scale_of
from dbray.bases.reading import Reader
from dbray.bases.resident import Weights
from dbray.errors import BaseError, DbrayError, ModelNotFound
from dbray.method.mixing import Member, member_of, mixable_layers
from dbray.records.models import Registry
from dbray.serving.messages import (
    BASE,
    NOT_FOUND,
    Answer,
    Ask,
    Begun,
    Event,
    Finished,
    Partial,
    Refusal,
    Refused,
    base_name,
    names_of,
    shares_of,
)
from dbray.serving.meters import CacheMeters, DeviceMeters
from dbray.serving.options import ServeOptions
from dbray.serving.presence import Presence
from dbray.serving.replica import weights
from dbray.serving.replica.fair_queue import FairQueue, Limits, Request
from dbray.serving.replica.loads import Loads
from dbray.serving.replica.painter import UNKNOWN, Painter, Painting, Sketch
from dbray.serving.replica.pictures import encode
from dbray.serving.replica.scratch import Scratch
from dbray.serving.replica.sizes import Sizes
from dbray.spec.paths import MINIATURE
from dbray.spec.sections import Previews
from dbray.spec.super_resolution import SuperResolution
from dbray.storage.store import Store

_log = logging.getLogger(__name__)

_NUM_READERS = 4
_NUM_LIFTERS = 4
_NUM_ENCODERS = 2
_LEAST_LOADS = 2  # one model serves while the next is loaded
_STUCK_SECONDS = 120.0


class Replica:
    """Serves every model of a registry, with the weights of one in the module at a time.

    Low-rank models may be several: their factors are beside the base's weights.
    """

    def __init__(self, options: ServeOptions) -> None:
        torch.set_num_threads(options.threads)
        self.options = options
        store = Store(options.registry)
        self._registry = Registry(store)
        self._presence = Presence(store)
        self._device = _device(options.device)
        base = bases.resolve(options.base or MINIATURE, options.base_revision)
        base = bases.with_stage(base, options.stage)
        compute = Compute(self._device, options.precision).through(base)
        self._backbone = bases.load(base, compute)
        then = options.stage and options.stage.then
        self._stage = fill_super_resolution(base, SuperResolution(then=then))
        # Found once: the painter replaces layers while it samples.
        self._mixable = mixable_layers(self._backbone.models[base.family.denoiser])
        defaults = base.fill(Previews())
        self._sampling = Sampling.of(defaults)
        self._reader = Reader.of(base)
        self._sizes = Sizes.of(self._backbone.resolution, self._backbone.latent_shape()[1])
        self._scratch = Scratch(options.scratch)
        # Separate threads, so that slow storage delays neither loading nor sampling.
        self._readers = ThreadPoolExecutor(_NUM_READERS, "reader")
        self._lifters = ThreadPoolExecutor(_NUM_LIFTERS, "lifter")
        self._encoders = ThreadPoolExecutor(_NUM_ENCODERS, "encoder")
        source = weights.Source(self._registry, self._backbone, self._scratch.folder)
        self._cache_meters, self._device_meters = CacheMeters(), DeviceMeters()
        budgets = weights.Budgets.of(options)
        self._cache = weights.make_cache(
            source, budgets, self._lifters, self._cache_meters, store.is_local
        )
        largest = weights.published_bytes(self._backbone.resident.layouts)
        num_loads = max(_LEAST_LOADS, budgets.ram_bytes // largest)
        self._loads = Loads(self._cache, self._readers, num_loads)
        self._queue = FairQueue(Limits.of(options))
        self._painter = Painter(
            self._backbone, self._queue, self._device_meters, self._beat, defaults.sampler
        )
        self._sweeper: asyncio.Task[None] | None = None
        self._painter.start()

    def _beat(self) -> None:
        self._device_meters.queued.set(self._queue.num_images)
        self._cache_meters.beat()

    async def generate(self, ask: Ask) -> Answer | Refusal:
        """Sample all images of a request."""
        begun: Begun | None = None
        images: dict[int, bytes] = {}
        async with aclosing(self.stream(ask)) as events:
            async for event in events:
                if isinstance(event, Refusal):
                    return event
                if isinstance(event, Begun):
                    begun = event
                elif isinstance(event, Finished):
                    images[event.index] = event.data
        assert begun is not None
        return Answer(begun, tuple(images[index] for index in range(len(ask.seeds))))

    async def stream(self, ask: Ask) -> AsyncGenerator[Event]:
        """Sample, yielding events as they happen; a Refusal is the last."""
        self._sweep_in_background()
        loop, inbox = asyncio.get_running_loop(), asyncio.Queue[Any]()

        def emit(item: object) -> None:
            loop.call_soon_threadsafe(inbox.put_nowait, item)

        try:
            request = self._request(ask, emit)
            self._queue.push(request)
        except Refused as exc:
            yield exc.refusal
            return
        fetching = asyncio.create_task(self._fetch(request))
        try:
            remaining = len(ask.seeds)
            while remaining:
                event = await self._encoded(ask, await inbox.get())
                yield event
                if isinstance(event, Refusal):
                    return
                remaining -= isinstance(event, Finished)
        finally:
            # Also if the caller disconnected: its place is free at once, and its batch ends.
            self._queue.withdraw(request)
            fetching.cancel()

    def _request(self, ask: Ask, emit: Callable[[object], None]) -> Request:
        stage = ask.super_resolution if ask.models else self._stage
        sampling = replace(self._sampling, **ask.sampling).through(stage)
        try:
            self._backbone.base.family.check_sampler(sampling.sampler)
        except BaseError as exc:
            raise Refused(Refusal(400, "invalid_value", str(exc), "scheduler")) from exc
        scale = scale_of(self._backbone.base, sampling)
        width, height = size = self._size(ask, scale)
        area = width * height / (scale * self._backbone.resolution) ** 2
        read = self._reader.cut_fields(ask.texts)
        return Request(ask, sampling, size, emit, time.monotonic(), area, read)

    def _size(self, ask: Ask, scale: int) -> tuple[int, int]:
        """The size of the images of the last stage."""
        own = (ask.resolution or self._backbone.resolution) * scale
        return self._sizes.times(scale).fitted(ask.size, own, ask.strict_size)

    async def _fetch(self, request: Request) -> None:
        """Load the weights while the request waits, and hold them until cancelled."""
        if request.ask.key == BASE:
            self._queue.ready(request, None, self._member(None))
            return
        try:
            async with self._loads.using(
                request.ask.key, lambda: self._queue.turn(request)
            ) as hold:
                self._queue.ready(request, hold, self._member(hold.value.weights))
                await asyncio.get_running_loop().create_future()
        except Exception as exc:  # noqa: BLE001 - every failure has to reach the caller
            request.refuse(weights.load_refusal(exc, request.ask.key))

    def _member(self, model: Weights | None) -> Member | None:
        """Return a model's part of a mixed batch; None if it has to be alone in its batch."""
        if not self.options.mix or self._stage is not None:
            return None
        return member_of(model, self._backbone.base.family.denoiser, self._mixable)

    async def _encoded(self, ask: Ask, event: Any) -> Event:
        if not isinstance(event, Sketch | Painting):
            return event
        data = await asyncio.get_running_loop().run_in_executor(
            self._encoders, encode, event.pixels, ask.output_format, ask.quality
        )
        if isinstance(event, Sketch):
            return Partial(event.index, event.number, data)
        return Finished(event.index, data)

    async def warm(self, subject: str, revision: str) -> tuple[str, float] | Refusal:
        """Load a model's weights; return the tier that had them, and milliseconds.

        Requests for images have priority.
        """
        key, started = f"{subject}@{revision}", time.monotonic()
        try:
            async with self._loads.using(key, lambda: (math.inf, started)) as hold:
                await hold.landed()
        except Exception as exc:  # noqa: BLE001 - every failure has to reach the caller
            return weights.load_refusal(exc, key)
        return hold.source, (time.monotonic() - started) * 1000

    async def forget(self, keys: Collection[str]) -> int:
        """Drop revisions from every tier and the module, and end requests for them."""
        return await self._forget(lambda key: not names_of(key).isdisjoint(keys))

    async def _forget(self, chosen: Callable[[str], bool]) -> int:
        count = self._cache.purge(chosen, ModelNotFound("taken down"))
        self._queue.refuse(lambda request: chosen(request.ask.key), NOT_FOUND)
        await asyncio.wrap_future(self._painter.forget(chosen))
        return count

    def _sweep_in_background(self) -> None:
        if self._sweeper is None or self._sweeper.done():
            self._sweeper = asyncio.create_task(self._sweep())

    async def _sweep(self) -> None:
        """Drop models that others removed from the registry, such as `dbray models remove`."""
        while True:
            await asyncio.sleep(self.options.sweep_seconds)
            held = self._cache.keys() | {self._painter.resident} - {BASE, UNKNOWN}
            gone = await asyncio.to_thread(self._gone, held)
            if gone:
                await self._forget(gone.__contains__)

    def _gone(self, keys: set[str]) -> set[str]:
        try:
            return {key for key in keys if self._is_removed(key)}
        except DbrayError as exc:
            _log.warning("cannot look into the registry: %s", type(exc).__name__)
            return set()

    def _is_removed(self, key: str) -> bool:
        """Whether a model was removed. Raises StoreError if the whole registry is missing."""
        if all(self._registry.has(one.subject, one.revision) for one in shares_of(key)):
            return False
        self._presence.check()
        return True

    async def ready(self) -> dict[str, Any]:
        """Return the loaded base. A replica exists only after one real step with it."""
        return {
            "base": base_name(self._backbone.base.name),
            "device": str(self._backbone.device),
            "resolution": self._backbone.resolution,
        }

    async def figures(self) -> dict[str, Any]:
        """Return what the tiers hold, for tests and benchmarks."""
        tiers = {level.tier.name: level.tier for level in self._cache.levels}
        return {
            "pid": os.getpid(),
            "resident": self._painter.resident,
            "queued_images": self._queue.num_images,
            "bytes": {name: tier.used_bytes for name, tier in tiers.items()},
            "keys": {name: tier.keys() for name, tier in tiers.items()},
        }

    def check_health(self) -> None:
        """Raise if the device's thread is dead or stuck, so that Serve replaces this replica."""
        if self._painter.seconds_silent() > _STUCK_SECONDS:
            raise RuntimeError("the device does not answer")

    def close(self) -> None:
        """End the threads and remove local copies; a second call does nothing."""
        self._painter.stop()
        for pool in (self._readers, self._lifters, self._encoders):
            pool.shutdown(wait=False, cancel_futures=True)
        self._scratch.close()

    def __del__(self) -> None:
        """Called by Ray Serve at the end."""
        if hasattr(self, "_painter"):  # otherwise it was never started
            self.close()


def _device(choice: str) -> str:
    if choice != "auto":
        return choice
    return "cuda" if torch.cuda.is_available() else "cpu"
