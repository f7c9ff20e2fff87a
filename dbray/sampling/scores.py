"""Scores of published models: images sampled, embedded and compared, on Ray Data.

Owns who is compared with whom: the base once per class noun, the photographs of every subject once,
then each model. What is sampled is in dbray.sampling.measuring, formulas are in
dbray.scores.figures. Does not know training or reports.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dbray.bases import Base
from dbray.records import scores as layout
from dbray.records.models import ModelRecord
from dbray.sampling.joining import Failures, Joining, OnProgress
from dbray.sampling.measuring import (
    Embeddings,
    Measure,
    ScoreActor,
    describe,
    embeddings_of,
    measure_of,
)
from dbray.sampling.pool import Result, SamplingPool
from dbray.scores import figures
from dbray.spec.subject import Subject
from dbray.storage.store import Store
from dbray.training.losses import seed_of

__all__ = ["Measure", "describe", "make_scores", "measure_of", "score"]

MAX_LOOKALIKES = 200
"""Other subjects of a class noun that a model is compared with, at most."""


def make_scores(  # noqa: PLR0913 - as make_previews
    store: Store,
    base: Base,
    records: Sequence[ModelRecord],
    subjects: Sequence[Subject],
    measure: Measure,
    pool: SamplingPool | None = None,
    on_progress: OnProgress | None = None,
) -> Failures:
    """Score published models, and publish the scores as annexes.

    Args:
        store: where the models are published.
        base: the base that they were all trained from.
        records: the models.
        subjects: theirs, and others; those of one class noun are each other's look-alikes.
        measure: prompts, sampling and embedders.
        pool: the sampling actors.
        on_progress: called with the number of models done and the number of models.

    Returns:
        Subject id and reason for every model without scores.
    """
    pool = pool or SamplingPool()
    joining = ScoreJoining(store, measure, records, subjects, on_progress)
    return joining.run(ScoreActor, (base, pool.threads, store, measure), pool)


class ScoreJoining(Joining):
    """Joins a model's embeddings with the base's, and with photographs of its look-alikes."""

    def __init__(
        self,
        store: Store,
        measure: Measure,
        records: Sequence[ModelRecord],
        subjects: Sequence[Subject],
        on_progress: OnProgress | None = None,
    ) -> None:
        super().__init__(records, on_progress)
        self.store, self.measure = store, measure
        nouns = {record.class_noun for record in records}
        # Shuffled: the look-alikes of a subject are those that follow it.
        shuffled = sorted(
            (subject for subject in subjects if subject.class_noun in nouns),
            key=lambda subject: seed_of(subject.id),
        )
        self._rings: dict[str, list[Subject]] = {}
        self._turn: dict[str, int] = {}
        for subject in shuffled:
            ring = self._rings.setdefault(subject.class_noun, [])
            self._turn[subject.id] = len(ring)
            ring.append(subject)
        gallery = {one.id: one for record in records for one in self._around(record)}
        first = self.share({"photographs": list(one.images)} for one in gallery.values())
        self._place = {name: first + number for number, name in enumerate(gallery)}

    def _around(self, record: ModelRecord) -> list[Subject]:
        """Return the model's subject and its look-alikes."""
        ring, turn = self._rings[record.class_noun], self._turn[record.id]
        steps = range(min(len(ring), MAX_LOOKALIKES + 1))
        return [ring[(turn + step) % len(ring)] for step in steps]

    def model_task(self, index: int) -> dict[str, Any]:
        return {"model": self.records[index].name}

    def needed(self, index: int) -> list[int]:
        """The base, the subject's photographs, and those of its look-alikes, in this order."""
        around = self._around(self.records[index])
        return [self.base_of(index), *(self._place[one.id] for one in around)]

    def publish(self, index: int, own: Result, shared: Mapping[int, Result]) -> None:
        record = self.records[index]
        of_base, mine, *others = self.needed(index)
        photographs = {record.id: embeddings_of(shared[mine])}
        for subject, number in zip(self._around(record)[1:], others, strict=True):
            if shared[number].error is None:
                photographs[subject.id] = embeddings_of(shared[number])
        self.keep(record, own, embeddings_of(shared[of_base]), photographs)

    def keep(
        self,
        record: ModelRecord,
        own: Result,
        of_base: Embeddings,
        photographs: Mapping[str, Embeddings],
    ) -> None:
        """Score a model, and publish the scores beside it."""
        scores = self.scores_of(record, embeddings_of(own), of_base, photographs)
        request = describe(self.measure, record.class_noun, record.identifier)
        layout.annex(self.store, record.name).publish(layout.files_of(scores, request))

    def scores_of(
        self,
        record: ModelRecord,
        own: Embeddings,
        of_base: Embeddings,
        photographs: Mapping[str, Embeddings],
    ) -> layout.Scores:
        """Compute a model's scores; see `score`."""
        return score(own, of_base, record.id, photographs, self.measure.scoring.images)


def score(
    own: Embeddings,
    of_base: Embeddings,
    subject: str,
    photographs: Mapping[str, Embeddings],
    num_images: int,
) -> layout.Scores:
    """Compute a model's scores from embeddings.

    Args:
        own: of the model's images.
        of_base: of the base's images for the same prompts and seeds.
        subject: the subject's id.
        photographs: of the subject and its look-alikes, by subject.
        num_images: images of each prompt, which are adjacent.
    """
    mine = photographs[subject]["subject"]
    by_subject = {name: found["subject"] for name, found in photographs.items()}
    nearest, precision = figures.margin(own["subject"], subject, by_subject)
    return layout.Scores(
        identity=figures.identity(own["subject"], mine),
        base_identity=figures.identity(of_base["subject"], mine),
        ceiling=figures.ceiling(mine),
        nearest=nearest,
        ceiling_nearest=figures.margin_ceiling(subject, by_subject),
        precision=precision,
        num_lookalikes=len(photographs) - 1,
        copies=figures.copies(own["thumbnails"], photographs[subject]["thumbnails"]),
        diversity=_diversity(own["subject"], num_images),
        base_diversity=_diversity(of_base["subject"], num_images),
        **_perceptual(own, of_base),
        **_by_clip(own, of_base, photographs[subject]),
        **_without_subject(own, of_base, mine, num_images),
    )


def _perceptual(own: Embeddings, of_base: Embeddings) -> dict[str, float]:
    if "spread" not in own:
        return {}
    return {
        "perceptual_diversity": float(own["spread"].mean()),
        "base_perceptual_diversity": float(of_base["spread"].mean()),
    }


def _by_clip(own: Embeddings, of_base: Embeddings, mine: Embeddings) -> dict[str, float | None]:
    if "seen" not in own:
        return {"prompt": None, "base_prompt": None}
    return {
        "prompt": figures.prompt_fidelity(own["seen"], own["asked"]),
        "base_prompt": figures.prompt_fidelity(of_base["seen"], own["asked"]),
        "followed": figures.followed(own["seen"], own["asked"]),
        "base_followed": figures.followed(of_base["seen"], own["asked"]),
        "clip_identity": figures.identity(own["seen"], mine["seen"]),
        "base_clip_identity": figures.identity(of_base["seen"], mine["seen"]),
        "clip_ceiling": figures.ceiling(mine["seen"]),
    }


def _without_subject(
    own: Embeddings, of_base: Embeddings, mine: Tensor, num_images: int
) -> dict[str, Any]:
    """Compute the scores of class images and of unrelated ones."""
    found: dict[str, Any] = {
        "drift": figures.drift(own["class"], of_base["class"]),
        "preservation": figures.identity(own["class"], mine),
        "base_preservation": figures.identity(of_base["class"], mine),
        "class_diversity": _diversity(own["class"], num_images),
        "base_class_diversity": _diversity(of_base["class"], num_images),
    }
    if "unrelated" in own:
        found["unrelated_drift"] = figures.drift(own["unrelated"], of_base["unrelated"])
    return found


def _diversity(images: Tensor, num_images: int) -> float:
    return figures.diversity(torch.split(images, num_images))
