"""The untouched base prompted with descriptions of the subjects, in the place of a trained model.

A description takes the place of "[identifier] [class noun]" in the subject's prompts; its images
are scored as a model's are. Prompts of the class keep the class noun: there, it is the base itself.
Results are kept in the storage, by everything that determines them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dbray.ablate.scoring import Scored
from dbray.planning.checked import Ready
from dbray.records.scores import Scores
from dbray.run.watch import Watch
from dbray.sampling.joining import base_task
from dbray.sampling.measuring import Measure, ScoreActor, describe, embeddings_of
from dbray.sampling.pool import Result, SamplingPool, sample
from dbray.sampling.previews import PreviewActor
from dbray.sampling.scores import score
from dbray.spec.canon import digest_json
from dbray.spec.sections import Previews
from dbray.storage.committed import Committed
from dbray.storage.store import Store
from dbray.subjects.validation import CheckedSubject

_SCORES = "scores.json"
Files = Mapping[str, bytes]


def score_descriptions(
    store: Store, ready: Ready, measure: Measure, previews: Previews, watch: Watch
) -> dict[str, Files]:
    """Score every subject's description; return the stored files by subject.

    Raises:
        DbrayError: the base cannot be sampled.
    """
    folders = {one.subject.id: _folder(ready, measure, previews, one) for one in ready.subjects}
    lacking = [one for one in ready.subjects if not store.is_committed(folders[one.subject.id])]
    if lacking:
        watch.note(f"sampling the untouched base for {len(lacking)} descriptions")
        found = _Embedded(store, ready, measure, previews, lacking)
        for one in lacking:
            store.commit(folders[one.subject.id], found.files(one))
    return {name: _read(store, folder) for name, folder in folders.items()}


def scored_of(variant: str, files: Mapping[str, Files]) -> list[Scored]:
    """Return the scores in the stored files."""
    return [
        Scored(variant, subject, None, None, Scores.model_validate_json(found[_SCORES]))
        for subject, found in files.items()
    ]


def _folder(ready: Ready, measure: Measure, previews: Previews, one: CheckedSubject) -> str:
    noun, stage = one.subject.class_noun, ready.job.super_resolution
    value = {
        "base": ready.base.serving.digest,
        "images": one.image_digests,
        "class_noun": noun,
        "precision": ready.job.recipe.precision,
        "resolution": ready.job.recipe.resolution,
        "previews": previews.identity(),
        "description": one.subject.description,
        **({"super_resolution": stage.model_dump(mode="json")} if stage else {}),
        **{name: text.decode() for name, text in describe(measure, noun, "").items()},
    }
    return f"descriptions/{digest_json(value)}"


def _read(store: Store, folder: str) -> Files:
    committed = Committed(store, folder)
    return {name: committed.read(name) for name in committed.files}


class _Embedded:
    """Embeddings of photographs and of the base's images, and pictures, of some subjects."""

    def __init__(
        self,
        store: Store,
        ready: Ready,
        measure: Measure,
        previews: Previews,
        subjects: list[CheckedSubject],
    ) -> None:
        self._recipe, self._num_images = ready.job.recipe, measure.scoring.images
        self._stage = ready.job.super_resolution
        base, pool = ready.base.serving, SamplingPool.of(ready.job.resources)
        args = base, pool.threads, store
        tasks = [task for one in subjects for task in self._tasks(one)]
        self._embeddings = _carry_out(ScoreActor, (*args, measure), tasks, pool)
        shown = [self._described(one) for one in subjects]
        self._pictures = _carry_out(PreviewActor, (*args, previews), shown, pool)

    def files(self, one: CheckedSubject) -> dict[str, bytes]:
        """Return the files to store for a subject."""
        mine, of_base, described = (
            dict(embeddings_of(self._embeddings[_key(task)])) for task in self._tasks(one)
        )
        own = of_base | described
        name = one.subject.id
        scores = score(own, of_base, name, {name: mine}, self._num_images)
        pictures = self._pictures[_key(self._described(one))].checked()
        return {**pictures, _SCORES: scores.model_dump_json(indent=1).encode()}

    def _tasks(self, one: CheckedSubject) -> list[dict[str, Any]]:
        return [
            {"photographs": list(one.subject.images)},
            self._of_base(one),
            self._described(one),
        ]

    def _of_base(self, one: CheckedSubject) -> dict[str, Any]:
        return base_task(one.subject.class_noun, self._recipe, self._stage)

    def _described(self, one: CheckedSubject) -> dict[str, Any]:
        return self._of_base(one) | {"description": one.subject.description}


def _carry_out(
    actor: Any, args: tuple[Any, ...], tasks: list[dict[str, Any]], pool: SamplingPool
) -> dict[str, Result]:
    """Carry out each different task once; return its result by its key. Raises LaneLost."""
    different = {_key(task): task for task in tasks}
    keys = list(different)
    results = sample(actor, args, list(different.values()), pool)
    return {keys[result.index]: result for result in results}


def _key(task: Mapping[str, Any]) -> str:
    return json.dumps(task, sort_keys=True)
