"""Scores of published models: images sampled, embedded and compared, on Ray Data.

Owns what is sampled for a score and how results are joined: the base once per class noun, the
photographs of every subject once, then each model. Formulas are in dbray.scores.figures. Does not
know training or reports.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from dbray.bases import Backbone, Base
from dbray.bases.generate import Sampling
from dbray.errors import DbrayError
from dbray.method.methods import put
from dbray.records import scores as layout
from dbray.records.models import ModelRecord, Registry
from dbray.sampling.pool import Result, SamplingActor, SamplingPool, generate_in_batches, sample
from dbray.scores import embedders, figures
from dbray.scores.embedders import Embedder, LoadedEmbedder
from dbray.spec.prompts import fill_prompt
from dbray.spec.sections import Previews, Recipe, Scoring
from dbray.spec.subject import Subject
from dbray.storage.store import Store, read_uri
from dbray.subjects.images import MAX_IMAGE_BYTES, decode
from dbray.training.losses import seed_of

MAX_LOOKALIKES = 200
"""Other subjects of a class noun that a model is compared with, at most."""
_PUBLISHED_AT_ONCE = 16
_FILE = "embeddings"

Embeddings = Mapping[str, Tensor]
"""By name: `subject` and `class` rows of the identity embedder, and of the CLIP, if there is one,
`seen` of the subject's images and `asked` of their prompts."""


@dataclass(frozen=True)
class Measure:
    """What a job measures: how images are sampled, and the embedders that compare them."""

    scoring: Scoring
    sampling: Sampling
    identity: Embedder
    clip: Embedder | None


def measure_of(scoring: Scoring, previews: Previews) -> Measure | None:
    """Find the embedders of a job; None if it has none. Raises BaseError."""
    if scoring.embedder is None:
        return None
    return Measure(
        scoring,
        Sampling(previews.sampler, previews.steps, previews.guidance),
        embedders.resolve(scoring.embedder, scoring.embedder_revision),
        None if scoring.clip is None
        else embedders.resolve(scoring.clip, scoring.clip_revision),
    )  # fmt: skip


def describe(measure: Measure, class_noun: str, identifier: str) -> dict[str, bytes]:
    """Make the file that describes how a model is scored; it differs if the scores would."""
    scoring, clip = measure.scoring, measure.clip
    value = {
        "identity": [measure.identity.name, measure.identity.digest],
        "clip": clip and [clip.name, clip.digest],
        "prompts": _prompts(scoring.prompts, class_noun, identifier),
        "class_prompts": _prompts(scoring.class_prompts, class_noun, None),
        "images": scoring.images,
        "seed": scoring.seed,
        "sampling": asdict(measure.sampling),
    }
    return {layout.REQUEST: json.dumps(value, indent=1, ensure_ascii=False).encode()}


def _prompts(templates: Sequence[str], class_noun: str, identifier: str | None) -> list[str]:
    return [fill_prompt(template, class_noun, identifier) for template in templates]


class ScoreActor(SamplingActor):
    """Samples and embeds: photographs, the untouched base, or one model at a time."""

    def __init__(self, base: Base, threads: int, store: Store, measure: Measure) -> None:
        super().__init__(base, threads)
        self._registry, self._measure = Registry(store), measure
        self._loaded: dict[str, LoadedEmbedder] = {}

    def make(self, task: dict[str, Any]) -> dict[str, bytes]:
        """Embed the photographs, a model's images, or the base's, as the task requests."""
        if task["kind"] == "photographs":
            found = self._photographs(task["photographs"])
        elif task["kind"] == "base":
            backbone = self.backbone(Recipe.model_validate(task["recipe"]))
            backbone.resident.put(None)
            found = self._images(backbone, task["class_noun"], None)
        else:
            found = self._of_model(task["model"])
        return {_FILE: save_tensors(dict(found))}

    def _photographs(self, uris: Sequence[str]) -> Embeddings:
        pictures = [np.asarray(decode(read_uri(uri, MAX_IMAGE_BYTES), uri)) for uri in uris]
        return {"subject": self._embedder(self._measure.identity).images(pictures)}

    def _of_model(self, name: str) -> Embeddings:
        revision = self._registry.open(name)
        record = revision.record
        backbone = self.backbone(record.recipe)
        with tempfile.TemporaryDirectory() as folder:
            put(backbone, record.recipe.method, revision.fetch_weights(Path(folder)))
        return self._images(backbone, record.class_noun, record.identifier)

    def _images(self, backbone: Backbone, class_noun: str, identifier: str | None) -> Embeddings:
        scoring, clip = self._measure.scoring, self._measure.clip
        identity = self._embedder(self._measure.identity)
        prompts = _prompts(scoring.prompts, class_noun, identifier)
        images = self._sample(backbone, prompts)
        of_class = self._sample(backbone, _prompts(scoring.class_prompts, class_noun, None))
        found = {"subject": identity.images(images), "class": identity.images(of_class)}
        if clip is not None:
            reader = self._embedder(clip)
            # A CLIP does not know the identifier, so prompts contain only the class noun.
            asked = reader.texts(_prompts(scoring.prompts, class_noun, None))
            found["seen"] = reader.images(images)
            found["asked"] = asked.repeat_interleave(scoring.images, dim=0)
        return found

    def _sample(self, backbone: Backbone, prompts: Sequence[str]) -> Any:
        """Sample `images` images of each prompt, prompt by prompt: (N, H, W, 3)."""
        chosen = self._measure.scoring
        seeds = [seed_of(chosen.seed, index) for index in range(chosen.images)] * len(prompts)
        repeated = [prompt for prompt in prompts for _ in range(chosen.images)]
        return generate_in_batches(backbone, repeated, seeds, self._measure.sampling)

    def _embedder(self, embedder: Embedder) -> LoadedEmbedder:
        if embedder.digest not in self._loaded:
            self._loaded[embedder.digest] = embedders.load(embedder, self._device)
        return self._loaded[embedder.digest]


def make_scores(  # noqa: PLR0913 - as make_previews
    store: Store,
    base: Base,
    records: Sequence[ModelRecord],
    subjects: Sequence[Subject],
    measure: Measure,
    pool: SamplingPool | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[tuple[str, str]]:
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
    actor_args = (base, pool.threads, store, measure)
    joined = _Joined(store, measure, records, subjects)
    failures: list[tuple[str, str]] = []
    done = 0
    try:
        with (
            ThreadPoolExecutor(_PUBLISHED_AT_ONCE) as threads,
            closing(sample(ScoreActor, actor_args, joined.tasks(), pool)) as results,
        ):
            for result in results:
                ready = joined.take(result)
                failures += [one for one in threads.map(joined.publish, ready) if one]
                done += len(ready)
                if on_progress is not None:
                    on_progress(done, len(records))
    except DbrayError as exc:  # the pool is dead; the rest get this reason
        failures += [(records[index].id, str(exc)) for index in joined.waiting()]
    return failures


_BaseKey = tuple[str, str, str]


def _key(record: ModelRecord) -> _BaseKey:
    """Models with equal keys share the base's images."""
    return record.recipe.precision, str(record.recipe.resolution), record.class_noun


@dataclass
class _Joined:
    """Joins a model's embeddings with the base's and with photographs, in any order of arrival."""

    store: Store
    measure: Measure
    records: Sequence[ModelRecord]
    subjects: Sequence[Subject]
    results: dict[int, Result] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        keys = {_key(record): record for record in self.records}
        self._base_records = list(keys.values())
        self._place_of_key = {key: place for place, key in enumerate(keys)}
        nouns = {record.class_noun for record in self.records}
        self._gallery = [one for one in self.subjects if one.class_noun in nouns]
        self._place_of_subject = {
            subject.id: len(keys) + place for place, subject in enumerate(self._gallery)
        }
        self._first_model = len(keys) + len(self._gallery)

    def tasks(self) -> list[dict[str, Any]]:
        """Return every task: the base, photographs, and models, in this order."""
        of_base = [
            {
                "kind": "base",
                "class_noun": record.class_noun,
                "recipe": record.recipe.model_dump(mode="json"),
            }
            for record in self._base_records
        ]
        photographs = [
            {"kind": "photographs", "photographs": list(subject.images)}
            for subject in self._gallery
        ]
        models = [{"kind": "model", "model": record.name} for record in self.records]
        return [*of_base, *photographs, *models]

    def take(self, result: Result) -> list[int]:
        """Accept a result; return the models that can be scored now."""
        self.results[result.index] = result
        if any(index not in self.results for index in range(self._first_model)):
            return []
        return [index for index in self.waiting() if self._first_model + index in self.results]

    def waiting(self) -> list[int]:
        """Return the models that are not scored yet."""
        return [index for index in range(len(self.records)) if index not in self.ended]

    def publish(self, index: int) -> tuple[str, str] | None:
        """Score one model and publish; return its subject's id and the reason if that fails."""
        self.ended.add(index)
        record = self.records[index]
        try:
            own = _embeddings(self.results.pop(self._first_model + index))
            of_base = _embeddings(self.results[self._place_of_key[_key(record)]])
            num_images = self.measure.scoring.images
            scores = score(own, of_base, record.id, self._lookalikes(record), num_images)
            request = describe(self.measure, record.class_noun, record.identifier)
            files = layout.files_of(scores, request)
            layout.annex(self.store, record.name).publish(files)
        except DbrayError as exc:
            return record.id, str(exc)
        return None

    def _lookalikes(self, record: ModelRecord) -> dict[str, Tensor]:
        """Return photographs of the subject, and of others of its class noun, by subject."""
        own = _embeddings(self.results[self._place_of_subject[record.id]])["subject"]
        others = sorted(
            (seed_of(record.id, subject.id), subject.id)
            for subject in self._gallery
            if subject.class_noun == record.class_noun and subject.id != record.id
        )
        found = {record.id: own}
        for _, name in others[:MAX_LOOKALIKES]:
            result = self.results[self._place_of_subject[name]]
            if result.error is None:
                found[name] = _embeddings(result)["subject"]
        return found


def score(
    own: Embeddings,
    of_base: Embeddings,
    subject: str,
    photographs: Mapping[str, Tensor],
    num_images: int,
) -> layout.Scores:
    """Compute a model's scores from embeddings.

    Args:
        own: of the model's images.
        of_base: of the base's images for the same prompts and seeds.
        subject: the subject's id.
        photographs: of the subject and its look-alikes, (P, E) by subject.
        num_images: images of each prompt, which are adjacent.
    """
    mine = photographs[subject]
    nearest, precision = figures.margin(own["subject"], subject, photographs)
    has_text = "seen" in own
    return layout.Scores(
        identity=figures.identity(own["subject"], mine),
        base_identity=figures.identity(of_base["subject"], mine),
        ceiling=figures.ceiling(mine),
        nearest=nearest,
        precision=precision,
        num_lookalikes=len(photographs) - 1,
        prompt=figures.prompt_fidelity(own["seen"], own["asked"]) if has_text else None,
        base_prompt=figures.prompt_fidelity(of_base["seen"], own["asked"]) if has_text else None,
        drift=figures.drift(own["class"], of_base["class"]),
        preservation=figures.identity(own["class"], mine),
        base_preservation=figures.identity(of_base["class"], mine),
        diversity=figures.diversity(torch.split(own["class"], num_images)),
        base_diversity=figures.diversity(torch.split(of_base["class"], num_images)),
        copies=figures.copies(own["subject"], mine) if len(mine) > 1 else 0.0,
    )


def _embeddings(result: Result) -> Embeddings:
    """Return the embeddings of a result, or raise its error."""
    if result.error is not None:
        raise result.error
    return load_tensors(result.files[_FILE])
