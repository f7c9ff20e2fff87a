"""Previews: images of a published model for the preview prompts, and images of the base.

Samples from the published weights, on Ray Data, so that a preview shows what serving will give. The
untouched base is sampled once per class noun, for all subjects. Does not know training or reports.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dbray import metrics
from dbray.bases import Backbone, Base
from dbray.bases.generate import Sampling, generate_in_batches
from dbray.records import previews as layout
from dbray.records.previews import Files
from dbray.sampling.joining import (
    AnnexRequest,
    Failures,
    Joining,
    ModelActor,
    OnProgress,
    base_key,
)
from dbray.sampling.pool import Result, SamplingPool
from dbray.spec.prompts import fill_prompt
from dbray.spec.sections import Previews
from dbray.storage.store import Store, read_uri
from dbray.subjects.images import MAX_IMAGE_BYTES, decode, encode_png, encode_webp
from dbray.training.losses import seed_of

THUMBNAIL_PIXELS = 192


def seeds_of(previews: Previews) -> list[int]:
    """Return the seed of every preview prompt: the same for all subjects and for the base."""
    return [seed_of(previews.seed, index) for index in range(len(previews.prompts))]


class PreviewActor(ModelActor):
    """Samples the previews of one model at a time, or of the untouched base."""

    def __init__(self, base: Base, threads: int, store: Store, previews: Previews) -> None:
        super().__init__(base, threads, store)
        self._previews = previews

    def make(self, task: dict[str, Any]) -> Files:
        """Sample for the model in the task, or for the base if there is none."""
        if task["model"] is None:
            return layout.name_base_images(self._of_base(task))
        started = time.perf_counter()
        record, backbone = self.with_model(task["model"])
        prompts = self._prompts(record.class_noun, record.identifier)
        files = layout.name_images(self._sample(backbone, prompts))
        files |= layout.name_photographs(_thumbnail(uri) for uri in task["photographs"])
        metrics.phase_seconds().observe(time.perf_counter() - started, {"phase": "preview"})
        return files

    def _of_base(self, task: dict[str, Any]) -> list[bytes]:
        """Sample the base; a description, if there is one, takes the place of the subject."""
        prompts = self._prompts(task["class_noun"], None)
        if "description" in task:
            described = self._prompts(task["description"], None)
            pairs = zip(self._previews.prompts, prompts, described, strict=True)
            prompts = [own if "{subject}" in template else of_class
                       for template, of_class, own in pairs]  # fmt: skip
        return self._sample(self.with_base(task), prompts)

    def _prompts(self, class_noun: str, identifier: str | None) -> list[str]:
        return [fill_prompt(prompt, class_noun, identifier) for prompt in self._previews.prompts]

    def _sample(self, backbone: Backbone, prompts: Sequence[str]) -> list[bytes]:
        chosen = self._previews
        sampling = Sampling.of(chosen).through(self.stage)
        images = generate_in_batches(backbone, prompts, seeds_of(chosen), sampling)
        return [encode_png(image) for image in images]


def _thumbnail(uri: str) -> bytes:
    """Make a small copy of a photograph: full-size ones would make a report too large."""
    pixels = np.asarray(decode(read_uri(uri, MAX_IMAGE_BYTES), uri))
    return encode_webp(pixels, size=THUMBNAIL_PIXELS)


def make_previews(
    store: Store,
    base: Base,
    requests: Sequence[AnnexRequest],
    previews: Previews,
    pool: SamplingPool | None = None,
    on_progress: OnProgress | None = None,
) -> Failures:
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
    # Sorted, so that actors seldom change precision.
    todo = sorted(requests, key=lambda request: base_key(request.record))
    pool = pool or SamplingPool()
    joining = _PreviewJoining(store, previews, todo, on_progress)
    return joining.run(PreviewActor, (base, pool.threads, store, previews), pool)


class _PreviewJoining(Joining):
    """Joins the previews of models with those of the base."""

    def __init__(
        self,
        store: Store,
        previews: Previews,
        requests: Sequence[AnnexRequest],
        on_progress: OnProgress | None,
    ) -> None:
        super().__init__([request.record for request in requests], on_progress)
        self._store, self._previews, self._requests = store, previews, requests

    def model_task(self, index: int) -> dict[str, Any]:
        photographs = list(self._requests[index].photographs)
        return {"model": self.records[index].name, "photographs": photographs}

    def needed(self, index: int) -> list[int]:
        return [self.base_of(index)]

    def publish(self, index: int, own: Result, shared: Mapping[int, Result]) -> None:
        record = self.records[index]
        files = own.checked() | shared[self.base_of(index)].checked()
        files |= describe(self._previews, record.class_noun, record.identifier)
        layout.annex(self._store, record.name).publish(files)


def describe(previews: Previews, class_noun: str, identifier: str) -> Files:
    """Make the file that describes how these previews are sampled."""
    return layout.describe(previews, class_noun, identifier, seeds_of(previews))
