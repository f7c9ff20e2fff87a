"""Evaluates models image by image: the figures of every image, in a folder of Parquet files.

Shares sampling, embedding and scores with dbray.sampling.scores; the models stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dbray.bases import Base
from dbray.records import evaluations
from dbray.records.models import ModelRecord
from dbray.records.scores import REQUEST
from dbray.sampling.joining import Failures, OnProgress
from dbray.sampling.measuring import (
    Embeddings,
    Measure,
    ScoreActor,
    describe,
    embeddings_of,
    filled_prompts,
    pictures_of,
)
from dbray.sampling.pool import Result, SamplingPool
from dbray.sampling.scores import ScoreJoining
from dbray.scores import figures
from dbray.spec.subject import Subject
from dbray.storage.store import Store


@dataclass(frozen=True)
class Task:
    """What is evaluated, and where the results go."""

    store: Store
    """Where the models are."""
    base: Base
    records: Sequence[ModelRecord]
    subjects: Sequence[Subject]
    """Theirs, and their look-alikes."""
    measure: Measure
    output: Store


def evaluate(
    task: Task, pool: SamplingPool | None = None, on_progress: OnProgress | None = None
) -> Failures:
    """Evaluate models; each has its file as soon as it is done.

    Returns:
        Subject id and reason for every model that could not be evaluated.
    """
    pool = pool or SamplingPool()
    joining = _EvaluationJoining(task, on_progress)
    return joining.run(ScoreActor, (task.base, pool.threads, task.store, task.measure), pool)


def request_of(measure: Measure, record: ModelRecord) -> bytes:
    """Describe what is measured of a model; results of another request do not count."""
    return describe(measure, record.class_noun, record.identifier)[REQUEST]


class _EvaluationJoining(ScoreJoining):
    """Keeps the figures of every image instead of publishing scores."""

    def __init__(self, task: Task, on_progress: OnProgress | None) -> None:
        super().__init__(task.store, task.measure, task.records, task.subjects, on_progress)
        self._output = task.output

    def keep(
        self,
        record: ModelRecord,
        own: Result,
        of_base: Embeddings,
        photographs: Mapping[str, Embeddings],
    ) -> None:
        embedded = embeddings_of(own)
        scores = self.scores_of(record, embedded, of_base, photographs)
        columns = _figures(embedded, of_base, record.id, photographs)
        columns |= _texts(self.measure, record)
        columns["image"] = pictures_of(own)
        about = {"subject": record.id, "revision": record.revision, "class_noun": record.class_noun}
        rows = [
            about | dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        ]
        request = request_of(self.measure, record)
        evaluations.write(self._output, record.name, rows, scores, request)


def _texts(measure: Measure, record: ModelRecord) -> dict[str, list[Any]]:
    """Return the prompt and the seed of every image."""
    prompts = filled_prompts(measure, record.class_noun, record.identifier)
    return dict(zip(("prompt", "seed"), measure.each(prompts), strict=True))


def _figures(
    own: Embeddings, of_base: Embeddings, subject: str, photographs: Mapping[str, Embeddings]
) -> dict[str, list[Any]]:
    """Compute the figures of every image, as columns."""
    mine = photographs[subject]
    by_subject = {name: found["subject"] for name, found in photographs.items()}
    found: dict[str, list[Any]] = {
        "identity": figures.identities(own["subject"], mine["subject"]).tolist(),
        "base_identity": figures.identities(of_base["subject"], mine["subject"]).tolist(),
        "nearest": figures.nearest_subjects(own["subject"], by_subject),
        "is_copy": figures.are_copies(own["thumbnails"], mine["thumbnails"]).tolist(),
    }
    if "seen" in own:
        found["clip_identity"] = figures.identities(own["seen"], mine["seen"]).tolist()
        found["prompt_score"] = figures.prompt_fidelities(own["seen"], own["asked"]).tolist()
        found["base_prompt_score"] = figures.prompt_fidelities(
            of_base["seen"], own["asked"]
        ).tolist()
    return found
