"""Carry out an ablation: train its variants, score them, and write the results and the sheet.

Owns the folder of results: `runs/` is the storage of all ablations of the folder, `<name>/` has
ablation.json, ablation.csv and sheet.png. Every phase makes only what is missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import dbray
from dbray.ablate.descriptions import Files, score_descriptions, scored_of
from dbray.ablate.results import BASE, PHOTOGRAPHS, Results
from dbray.ablate.scoring import Scored, score
from dbray.ablate.sheet import Row, draw
from dbray.ablate.trials import Trial, train, trials_of
from dbray.ablate.variants import ABLATIONS, Variant
from dbray.cluster import connected
from dbray.errors import SpecError
from dbray.planning.checked import Ready
from dbray.records import previews as layout
from dbray.run.options import RunOptions
from dbray.run.watch import Watch
from dbray.sampling.scores import Measure, measure_of
from dbray.spec.prompts import fill_prompt
from dbray.storage.store import Store

_STORAGE = "runs"
_MAX_SHOWN = 6
"""Subjects on the sheet."""


@dataclass(frozen=True)
class Request:
    """What to carry out: an ablation by name, how many subjects, the seeds, and the folder."""

    name: str
    ready: Ready
    folder: Path
    seeds: Sequence[int] = (0,)
    num_subjects: int | None = None


@dataclass(frozen=True)
class Found:
    """The results, how many models are missing, and the files written."""

    results: Results
    num_missing: int
    files: Sequence[Path]


def ablate(request: Request, options: RunOptions, watch: Watch) -> Found:
    """Carry out an ablation, or continue it.

    Raises:
        SpecError: the job names no embedder, or a variant of it is invalid.
        Interrupted: the user interrupted it.
    """
    ready = with_own_subjects(request.ready, request.num_subjects)
    measure = measure_of(ready.job.scoring, ready.job.previews)
    if measure is None:
        raise SpecError.of(
            "scoring", "names no embedder, and variants are compared by their scores",
            "add 'scoring: {embedder: ...}' to the job, such as a folder of DINOv2",
        )  # fmt: skip
    variants = ABLATIONS[request.name].variants(ready)
    storage = request.folder.resolve() / _STORAGE
    trials = trials_of(request.name, ready, variants, request.seeds, str(storage))
    with connected(options.address, watch.note):
        trained = train(trials, replace(options, score=False), watch)
        store = Store(str(storage))
        scored = score(store, ready, measure, trained, watch)
        described = _described(store, ready, measure, variants, trials, watch)
    for variant, files in described.items():
        scored += scored_of(variant, files)
    results = Results(request.name, ABLATIONS[request.name], variants, scored)
    num_missing = len(trials) * len(ready.subjects) - sum(one.seed is not None for one in scored)
    sheet = _Sheet(store, ready, trials[0], scored, described)
    return Found(results, num_missing, _write(request, measure, results, sheet))


def with_own_subjects(ready: Ready, num_subjects: int | None = None) -> Ready:
    """Keep the first subjects, and list them in the job itself, which may name a folder."""
    kept = tuple(ready.subjects[:num_subjects])
    job = ready.job.model_copy(update={"subjects": tuple(one.subject for one in kept)})
    return replace(ready, job=job, subjects=kept)


def _described(
    store: Store,
    ready: Ready,
    measure: Measure,
    variants: Sequence[Variant],
    trials: Sequence[Trial],
    watch: Watch,
) -> dict[str, Mapping[str, Files]]:
    """Return, by variant without a job, the stored files of each subject."""
    previews = trials[0].job.previews
    return {
        variant.name: score_descriptions(store, ready, measure, previews, watch)
        for variant in variants
        if variant.job is None
    }


@dataclass(frozen=True)
class _Sheet:
    """Finds the images of the sheet."""

    store: Store
    ready: Ready
    first: Trial
    scored: Sequence[Scored]
    described: Mapping[str, Mapping[str, Files]]

    def draw(self, variants: Sequence[Variant]) -> bytes:
        """Draw the sheet; returns a PNG file."""
        shown = [one.subject for one in self.ready.subjects[:_MAX_SHOWN]]
        prompts = self.first.job.previews.prompts
        # The same for all variants, whose identifiers and class nouns differ.
        asked = [prompt.replace("{subject}", "[V] {class}") for prompt in prompts]
        captions = [f"{one.id}\n{fill_prompt(prompt, one.class_noun)}"
                    for one in shown for prompt in asked]  # fmt: skip
        ids = [one.id for one in shown]
        return draw(captions, list(self._rows(ids, variants, len(prompts))))

    def _rows(self, ids: Sequence[str], variants: Sequence[Variant], count: int) -> Iterator[Row]:
        first = self._of(variants[0])
        photographs = [layout.photographs_of(first.get(name, {})) for name in ids]
        yield Row(PHOTOGRAPHS, [image for own in photographs for image in _padded(own, count)])
        yield Row(BASE, [first.get(name, {}).get(f"base-{number}.png")
                         for name in ids for number in range(count)])  # fmt: skip
        for variant in variants:
            kind = "" if variant.job is not None else "base-"
            found = self._of(variant)
            yield Row(variant.name, [found.get(name, {}).get(f"{kind}{number}.png")
                                     for name in ids for number in range(count)])  # fmt: skip

    def _of(self, variant: Variant) -> Mapping[str, Files]:
        """Return the picture files of a variant with the first seed, by subject."""
        if variant.job is None:
            return self.described[variant.name]
        models = {one.subject: one.model for one in self.scored
                  if one.variant == variant.name and one.seed == self.first.seed}  # fmt: skip
        return {name: layout.annex(self.store, model).read() or {}
                for name, model in models.items() if model is not None}  # fmt: skip


def _padded(images: Sequence[bytes], count: int) -> list[bytes | None]:
    return [*images[:count], *[None] * max(0, count - len(images))]


def _write(request: Request, measure: Measure, results: Results, sheet: _Sheet) -> list[Path]:
    """Write the results; return the files, the sheet last."""
    folder = Store(str(request.folder.resolve() / request.name))
    about = {
        "dbray": dbray.__version__,
        "job": request.ready.job.id,
        "base": [request.ready.base.name, request.ready.base.digest],
        "embedder": [measure.identity.name, measure.identity.digest],
        "clip": measure.clip and [measure.clip.name, measure.clip.digest],
        "subjects": [one.subject.id for one in sheet.ready.subjects],
        "seeds": list(request.seeds),
    }
    folder.write_json("ablation.json", results.json() | about)
    folder.write_bytes("ablation.csv", results.csv().encode())
    folder.write_bytes("sheet.png", sheet.draw(results.variants))
    names = ("ablation.json", "ablation.csv", "sheet.png")
    return [request.folder / request.name / name for name in names]
