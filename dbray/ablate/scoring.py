"""Scores of an ablation's models, and of the untouched base prompted with descriptions.

All models are compared with all photographs of their subject, however many they were trained with.
The base and the photographs are sampled and embedded once for all variants and seeds whose subjects
have the same class nouns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dbray.ablate.trials import Trained, Trial
from dbray.planning.checked import Ready
from dbray.records import scores as layout
from dbray.records.models import ModelRecord, Registry
from dbray.records.scores import Scores
from dbray.run.watch import Watch
from dbray.sampling.pool import SamplingPool
from dbray.sampling.scores import Measure, describe, make_scores
from dbray.spec.subject import Subject
from dbray.storage.store import Store


@dataclass(frozen=True)
class Scored:
    """The scores of a subject in a variant; without a seed and a model, of the untouched base."""

    variant: str
    subject: str
    seed: int | None
    model: str | None
    scores: Scores


def score(
    store: Store, ready: Ready, measure: Measure, trained: Sequence[Trained], watch: Watch
) -> list[Scored]:
    """Make the scores that are missing, and return all; failures are noted."""
    groups: dict[tuple[str, ...], list[Trained]] = {}
    for one in trained:
        nouns = tuple(subject.class_noun for subject in _subjects_of(one.trial))
        groups.setdefault(nouns, []).append(one)
    for group in groups.values():
        _score_group(store, ready, measure, group, watch)
    return list(_read(store, trained))


def _score_group(
    store: Store, ready: Ready, measure: Measure, group: Sequence[Trained], watch: Watch
) -> None:
    registry = Registry(store)
    names = dict.fromkeys(name for one in group for name in one.models)
    records = [registry.find(name) for name in names]
    lacking = [one.model_copy(update={"loss": ()}) for one in records
               if not _has_scores(store, measure, one)]  # fmt: skip
    if not lacking:
        return
    all_images = {one.subject.id: one.subject.images for one in ready.subjects}
    subjects = [one.model_copy(update={"images": all_images[one.id]})
                for one in _subjects_of(group[0].trial)]  # fmt: skip
    failures = make_scores(
        store, ready.base.serving, lacking, subjects, measure, SamplingPool.of(ready.job.resources),
        lambda done, total: watch.progress("scores", done, total),
    )  # fmt: skip
    for name, reason in failures:
        watch.note(f"no scores of {name}: {reason}")


def _has_scores(store: Store, measure: Measure, record: ModelRecord) -> bool:
    request = describe(measure, record.class_noun, record.identifier)
    return layout.annex(store, record.name).has(request)


def _subjects_of(trial: Trial) -> Sequence[Subject]:
    assert not isinstance(trial.job.subjects, str)
    return trial.job.subjects


def _read(store: Store, trained: Sequence[Trained]) -> Iterator[Scored]:
    for one in trained:
        for model in one.models:
            found = layout.read(store, model)
            if found is not None:
                subject, _, _ = model.partition("@")
                yield Scored(one.trial.variant.name, subject, one.trial.seed, model, found)
