"""Previews: images of a published model for the preview prompts, and images of the base.

Samples from the published weights, on Ray Data, so that a preview shows what serving will give. The
untouched base is sampled once per class noun, for all subjects. Does not know training or reports.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dbray import metrics
from dbray.bases import Backbone, Base
from dbray.bases.generate import Sampling
from dbray.errors import DbrayError
from dbray.method.methods import put
from dbray.records import previews as layout
from dbray.records.models import ModelRecord, Registry
from dbray.records.previews import Files
from dbray.sampling.pool import Result, SamplingActor, SamplingPool, generate_in_batches, sample
from dbray.spec.prompts import fill_prompt
from dbray.spec.sections import Previews, Recipe
from dbray.storage.store import Store, read_uri
from dbray.subjects.images import MAX_IMAGE_BYTES, decode, encode_png, encode_webp
from dbray.training.losses import seed_of

OnProgress = Callable[[int, int], None]

THUMBNAIL_PIXELS = 192
_PUBLISHED_AT_ONCE = 16
"""On an object store, publishing one takes seconds: a request per file."""


@dataclass(frozen=True)
class PreviewRequest:
    """A published model, and the paths or URIs of the photographs to show with its previews."""

    record: ModelRecord
    photographs: Sequence[str]


def seeds_of(previews: Previews) -> list[int]:
    """Return the seed of every preview prompt: the same for all subjects and for the base."""
    return [seed_of(previews.seed, index) for index in range(len(previews.prompts))]


class PreviewActor(SamplingActor):
    """Samples the previews of one model at a time, or of the untouched base."""

    def __init__(self, base: Base, threads: int, store: Store, previews: Previews) -> None:
        super().__init__(base, threads)
        self._registry = Registry(store)
        self._previews = previews

    def make(self, task: dict[str, Any]) -> Files:
        """Sample for the model in the task, or for the base if there is none."""
        if task["model"] is None:
            backbone = self.backbone(Recipe.model_validate(task["recipe"]))
            backbone.resident.put(None)
            return layout.name_base_images(self._sample(backbone, task["class_noun"], None))
        started = time.perf_counter()
        revision = self._registry.open(task["model"])
        record = revision.record
        backbone = self.backbone(record.recipe)
        with tempfile.TemporaryDirectory() as folder:
            put(backbone, record.recipe.method, revision.fetch_weights(Path(folder)))
        images = self._sample(backbone, record.class_noun, record.identifier)
        files = layout.name_images(images)
        files |= layout.name_photographs(_thumbnail(uri) for uri in task["photographs"])
        metrics.phase_seconds().observe(time.perf_counter() - started, {"phase": "preview"})
        return files

    def _sample(self, backbone: Backbone, class_noun: str, identifier: str | None) -> list[bytes]:
        chosen = self._previews
        prompts = [fill_prompt(prompt, class_noun, identifier) for prompt in chosen.prompts]
        sampling = Sampling(chosen.sampler, chosen.steps, chosen.guidance)
        images = generate_in_batches(backbone, prompts, seeds_of(chosen), sampling)
        return [encode_png(image) for image in images]


def _thumbnail(uri: str) -> bytes:
    """Make a small copy of a photograph: full-size ones would make a report too large."""
    pixels = np.asarray(decode(read_uri(uri, MAX_IMAGE_BYTES), uri))
    return encode_webp(pixels, size=THUMBNAIL_PIXELS)


def make_previews(
    store: Store,
    base: Base,
    requests: Sequence[PreviewRequest],
    previews: Previews,
    pool: SamplingPool | None = None,
    on_progress: OnProgress | None = None,
) -> list[tuple[str, str]]:
    """Sample previews of published models, and publish them as annexes.

    Args:
        store: where the models are published.
        base: the base that they were all trained from.
        requests: the models.
        previews: prompts, sampler and seed.
        pool: the sampling actors.
        on_progress: called with the number of models done and the number of models.

    Returns:
        Subject id and reason for every model without previews; all others have theirs.
    """
    todo = sorted(requests, key=_base_key)  # so that actors seldom change precision
    pool = pool or SamplingPool()
    actor_args = (base, pool.threads, store, previews)
    with ThreadPoolExecutor(_PUBLISHED_AT_ONCE) as threads:
        report = on_progress or (lambda _done, _total: None)
        pairing = _Pairing(store, previews, todo, threads, report)
        try:
            with closing(sample(PreviewActor, actor_args, pairing.tasks(), pool)) as results:
                for result in results:
                    pairing.take(result)
            pairing.settle()
        except DbrayError as exc:  # the pool is dead; the rest get this reason
            pairing.give_up(str(exc))
    return pairing.failures


_BaseKey = tuple[str, str, str]


def _base_key(request: PreviewRequest) -> _BaseKey:
    """Models with equal keys share the base's previews."""
    recipe = request.record.recipe
    return recipe.precision, str(recipe.resolution), request.record.class_noun


class _Pairing:
    """Joins the previews of models and of the base, which arrive in any order.

    The tasks for the base come first, one per key, then those for the models.
    """

    def __init__(
        self,
        store: Store,
        previews: Previews,
        requests: Sequence[PreviewRequest],
        threads: ThreadPoolExecutor,
        on_progress: OnProgress,
    ) -> None:
        self.failures: list[tuple[str, str]] = []
        self._store = store
        self._previews = previews
        self._requests = requests
        self._threads = threads
        self._on_progress = on_progress
        self._shown_with = {_base_key(request): request.record for request in requests}
        self._keys = list(self._shown_with)
        self._of_base: dict[_BaseKey, Result] = {}
        self._of_models: dict[int, Result] = {}
        self._pending = set(range(len(requests)))
        self._in_publication: dict[Future[None], int] = {}
        on_progress(0, len(requests))

    def tasks(self) -> list[dict[str, Any]]:
        """Return every task: what to sample."""
        of_base = [
            {
                "model": None,
                "class_noun": record.class_noun,
                "recipe": record.recipe.model_dump(mode="json"),
            }
            for record in self._shown_with.values()
        ]
        of_models = [
            {
                "model": request.record.name,
                "photographs": list(request.photographs),
            }
            for request in self._requests
        ]
        return [*of_base, *of_models]

    def take(self, result: Result) -> None:
        """Accept a result; publish every model whose previews are now complete."""
        index = result.index - len(self._keys)
        if index < 0:
            self._of_base[self._keys[result.index]] = result
        else:
            self._of_models[index] = result
        candidates = [index] if index >= 0 else list(self._of_models)
        for candidate in candidates:
            if _base_key(self._requests[candidate]) in self._of_base:
                self._finish(candidate)
        self.settle(_PUBLISHED_AT_ONCE)  # bounds the files held in memory

    def settle(self, num_left: int = 0) -> None:
        """Wait until at most `num_left` models are being published."""
        while len(self._in_publication) > num_left:
            done, _ = wait(self._in_publication, return_when=FIRST_COMPLETED)
            for future in done:
                index = self._in_publication.pop(future)
                failure = None
                try:
                    future.result()
                except DbrayError as exc:
                    failure = str(exc)
                self._end(index, failure)

    def give_up(self, reason: str) -> None:
        """Report every model that is not done as a failure."""
        self.settle()
        for index in sorted(self._pending):
            self._end(index, reason)

    def _finish(self, index: int) -> None:
        request = self._requests[index]
        ours, of_base = self._of_models.pop(index), self._of_base[_base_key(request)]
        if error := ours.error or of_base.error:
            self._end(index, str(error))
            return
        record = request.record
        files = ours.files | of_base.files
        files |= describe(self._previews, record.class_noun, record.identifier)
        annex = layout.annex(self._store, record.name)
        future = self._threads.submit(annex.publish, files)
        self._in_publication[future] = index

    def _end(self, index: int, failure: str | None) -> None:
        self._pending.remove(index)
        if failure is not None:
            self.failures.append((self._requests[index].record.id, failure))
        self._on_progress(len(self._requests) - len(self._pending), len(self._requests))


def describe(previews: Previews, class_noun: str, identifier: str) -> Files:
    """Make the file that describes how these previews are sampled."""
    return layout.describe(previews, class_noun, identifier, seeds_of(previews))
