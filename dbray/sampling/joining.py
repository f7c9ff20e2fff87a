"""Annexes of many models, each made from its own result and from results that models share.

Owns the order of tasks, how results are joined as they arrive, and how annexes are published and
failures reported. Does not know what is sampled: see dbray.sampling.previews and scores.
"""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dbray.bases import Backbone, Base
from dbray.errors import DbrayError
from dbray.method.stages import put
from dbray.records.models import ModelRecord, Registry
from dbray.sampling.pool import Result, SamplingActor, SamplingPool, sample
from dbray.spec.recipe import Recipe
from dbray.spec.super_resolution import SuperResolution
from dbray.storage.store import Store

OnProgress = Callable[[int, int], None]
Failures = list[tuple[str, str]]
"""Subject id and reason for every model without the annex."""
BaseKey = tuple[str, str, str, str]

_PUBLISHED_AT_ONCE = 16
"""On an object store, publishing one takes seconds: a request for each file."""


@dataclass(frozen=True)
class AnnexRequest:
    """A published model, and the paths or URIs of its subject's photographs."""

    record: ModelRecord
    photographs: Sequence[str]


def base_key(record: ModelRecord) -> BaseKey:
    """Models with equal keys share the images of the base."""
    stage = record.super_resolution
    drawn = "" if stage is None else stage.model_dump_json()
    return record.recipe.precision, str(record.recipe.resolution), record.class_noun, drawn


def base_task(class_noun: str, recipe: Recipe, stage: SuperResolution | None) -> dict[str, Any]:
    """Return the task that samples the base for models of a recipe and of a second stage."""
    return {"model": None, "class_noun": class_noun, "recipe": recipe.model_dump(mode="json"),
            "super_resolution": stage and stage.model_dump(mode="json")}  # fmt: skip


class ModelActor(SamplingActor):
    """Has a warm backbone, and puts models of a registry, or the untouched base, into it."""

    def __init__(self, base: Base, threads: int, store: Store) -> None:
        super().__init__(base, threads)
        self._registry = Registry(store)
        self.stage: SuperResolution | None = None
        """The second stage of the model in the backbone, if it has one."""

    def with_base(self, task: dict[str, Any]) -> Backbone:
        """Return the untouched base for a task of `base_task`: as the model's, in all stages."""
        given = task["super_resolution"]
        self.stage = None if given is None else SuperResolution.model_validate(given)
        backbone = self.backbone(Recipe.model_validate(task["recipe"]), self.stage)
        backbone.resident.put(None)
        return backbone

    def with_model(self, name: str) -> tuple[ModelRecord, Backbone]:
        """Return a model's record, and the backbone with its weights."""
        revision = self._registry.open(name)
        record = revision.record
        backbone = self.backbone(record.recipe, record.super_resolution)
        self.stage = record.super_resolution
        with tempfile.TemporaryDirectory() as folder:
            put(backbone, record, revision.fetch_weights(Path(folder)))
        return record, backbone


class Joining(ABC):
    """Joins results of models with shared ones, in any order of arrival.

    The tasks come in this order: the base, once per `base_key`; what else models share; the models.
    """

    def __init__(self, records: Sequence[ModelRecord], on_progress: OnProgress | None) -> None:
        self.records, self.failures = records, Failures()
        self._on_progress = on_progress or (lambda _done, _total: None)
        shown_with = {base_key(record): record for record in records}
        self._place_of_base = {key: place for place, key in enumerate(shown_with)}
        self._shared_tasks = [
            base_task(one.class_noun, one.recipe, one.super_resolution)
            for one in shown_with.values()
        ]
        self._shared: dict[int, Result] = {}
        self._of_models: dict[int, Result] = {}
        self._pending = set(range(len(records)))
        self._in_publication: dict[Future[None], int] = {}

    def share(self, tasks: Iterable[dict[str, Any]]) -> int:
        """Add tasks whose results several models need; return the number of the first."""
        first = len(self._shared_tasks)
        self._shared_tasks.extend(tasks)
        return first

    def base_of(self, index: int) -> int:
        """Return the number of the task that samples the base for a model."""
        return self._place_of_base[base_key(self.records[index])]

    @abstractmethod
    def model_task(self, index: int) -> dict[str, Any]:
        """Return the task of a model."""

    @abstractmethod
    def needed(self, index: int) -> list[int]:
        """Return the numbers of the shared tasks that a model's annex is made from."""

    @abstractmethod
    def publish(self, index: int, own: Result, shared: Mapping[int, Result]) -> None:
        """Publish a model's annex; in a thread. Raises DbrayError, as do results with errors."""

    def run(
        self, actor: type[SamplingActor], actor_args: tuple[Any, ...], pool: SamplingPool
    ) -> Failures:
        """Carry out all tasks and publish; return the failures."""
        tasks = [*self._shared_tasks, *map(self.model_task, range(len(self.records)))]
        self._on_progress(0, len(self.records))
        with ThreadPoolExecutor(_PUBLISHED_AT_ONCE) as threads:
            try:
                with closing(sample(actor, actor_args, tasks, pool)) as results:
                    for result in results:
                        for index in self._take(result):
                            self._begin(index, threads)
                        self._settle(_PUBLISHED_AT_ONCE)  # bounds the files held in memory
                self._settle()
            except DbrayError as exc:  # the pool is dead; the rest get this reason
                self._settle()
                for index in sorted(self._pending):
                    self._end(index, str(exc))
        return self.failures

    def _take(self, result: Result) -> list[int]:
        """Keep a result; return the models that can be published now."""
        num_shared = len(self._shared_tasks)
        if result.index < num_shared:
            self._shared[result.index] = result
            candidates = list(self._of_models)
        else:
            candidates = [result.index - num_shared]
            self._of_models[candidates[0]] = result
        return [one for one in candidates if all(key in self._shared for key in self.needed(one))]

    def _begin(self, index: int, threads: ThreadPoolExecutor) -> None:
        own = self._of_models.pop(index)
        self._in_publication[threads.submit(self.publish, index, own, self._shared)] = index

    def _settle(self, num_left: int = 0) -> None:
        """Note which models are published; wait until at most `num_left` are not."""
        while self._in_publication:
            timeout = None if len(self._in_publication) > num_left else 0
            done, _ = wait(self._in_publication, timeout, FIRST_COMPLETED)
            if not done:
                return
            for future in done:
                failure = None
                index = self._in_publication.pop(future)
                try:
                    future.result()
                except DbrayError as exc:
                    failure = str(exc)
                self._end(index, failure)

    def _end(self, index: int, failure: str | None) -> None:
        self._pending.remove(index)
        if failure is not None:
            self.failures.append((self.records[index].id, failure))
        self._on_progress(len(self.records) - len(self._pending), len(self.records))
