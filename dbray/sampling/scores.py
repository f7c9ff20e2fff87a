"""Scores of published models: images sampled, embedded and compared, on Ray Data.

Owns what is sampled for a score, and who is compared with whom: the base once per class noun, the
photographs of every subject once, then each model. Formulas are in dbray.scores.figures. Does not
know training or reports.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from dbray.bases import Backbone, Base
from dbray.bases.generate import Sampling
from dbray.records import scores as layout
from dbray.records.models import ModelRecord
from dbray.sampling.joining import Failures, Joining, ModelActor, OnProgress
from dbray.sampling.pool import Result, SamplingPool, generate_in_batches
from dbray.scores import embedders, figures
from dbray.scores.embedders import Embedder, LoadedEmbedder
from dbray.spec.prompts import fill_prompt
from dbray.spec.sections import Previews, Scoring
from dbray.spec.subject import Subject
from dbray.storage.store import Store, read_uri
from dbray.subjects.images import MAX_IMAGE_BYTES, decode
from dbray.training.losses import seed_of

MAX_LOOKALIKES = 200
"""Other subjects of a class noun that a model is compared with, at most."""
_FILE = "embeddings"

Embeddings = Mapping[str, Tensor]
"""By name: `subject`, `class` and, if there are such prompts, `unrelated` rows of the identity
embedder; of the CLIP, if there is one, `seen` of the subject's images and `asked` of their prompts.
"""
_VERSION = 2
"""Of what is computed from equal requests; earlier scores are made again."""


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
        Sampling.of(previews),
        embedders.resolve(scoring.embedder, scoring.embedder_revision),
        None if scoring.clip is None
        else embedders.resolve(scoring.clip, scoring.clip_revision),
    )  # fmt: skip


def describe(measure: Measure, class_noun: str, identifier: str) -> dict[str, bytes]:
    """Make the file that describes how a model is scored; it differs if the scores would."""
    scoring, clip = measure.scoring, measure.clip
    value = {
        "version": _VERSION,
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


def _kinds(templates: Sequence[str]) -> dict[str, list[str]]:
    """Split prompts without the subject by whether they name its class."""
    kinds: dict[str, list[str]] = {}
    for template in templates:
        kinds.setdefault("class" if "{class}" in template else "unrelated", []).append(template)
    return kinds


class ScoreActor(ModelActor):
    """Samples and embeds: photographs, the untouched base, or one model at a time."""

    def __init__(self, base: Base, threads: int, store: Store, measure: Measure) -> None:
        super().__init__(base, threads, store)
        self._measure = measure
        self._loaded: dict[str, LoadedEmbedder] = {}

    def make(self, task: dict[str, Any]) -> dict[str, bytes]:
        """Embed what the task names: photographs, a model's images, or the base's."""
        if "photographs" in task:
            found = self._photographs(task["photographs"])
        elif task["model"] is None:
            found = self._images(self.with_base(task["recipe"]), task["class_noun"], None)
        else:
            record, backbone = self.with_model(task["model"])
            found = self._images(backbone, record.class_noun, record.identifier)
        return {_FILE: save_tensors(dict(found))}

    def _photographs(self, uris: Sequence[str]) -> Embeddings:
        pictures = [np.asarray(decode(read_uri(uri, MAX_IMAGE_BYTES), uri)) for uri in uris]
        found = {"subject": self._embedder(self._measure.identity).images(pictures)}
        if self._measure.clip is not None:
            found["seen"] = self._embedder(self._measure.clip).images(pictures)
        return found

    def _images(self, backbone: Backbone, class_noun: str, identifier: str | None) -> Embeddings:
        scoring, clip = self._measure.scoring, self._measure.clip
        identity = self._embedder(self._measure.identity)
        prompts = _prompts(scoring.prompts, class_noun, identifier)
        images = self._sample(backbone, prompts)
        found = {"subject": identity.images(images)}
        for kind, templates in _kinds(scoring.class_prompts).items():
            of_kind = self._sample(backbone, _prompts(templates, class_noun, None))
            found[kind] = identity.images(of_kind)
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
            here = embedders.find_on_this_node(embedder)
            self._loaded[embedder.digest] = embedders.load(here, self._device)
        return self._loaded[embedder.digest]


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
    joining = _ScoreJoining(store, measure, records, subjects, on_progress)
    return joining.run(ScoreActor, (base, pool.threads, store, measure), pool)


class _ScoreJoining(Joining):
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
        self._store, self._measure = store, measure
        nouns = {record.class_noun for record in records}
        # Shuffled: the look-alikes of a subject are those that follow it.
        self._gallery = sorted(
            (subject for subject in subjects if subject.class_noun in nouns),
            key=lambda subject: (subject.class_noun, seed_of(subject.id)),
        )
        self._rings: dict[str, list[int]] = {}
        self._turn: dict[str, int] = {}
        for number, subject in enumerate(self._gallery):
            ring = self._rings.setdefault(subject.class_noun, [])
            self._turn[subject.id] = len(ring)
            ring.append(number)
        self._first = self.share({"photographs": list(one.images)} for one in self._gallery)

    def model_task(self, index: int) -> dict[str, Any]:
        return {"model": self.records[index].name}

    def needed(self, index: int) -> list[int]:
        """The base, the subject's photographs, and those of its look-alikes, in this order."""
        record = self.records[index]
        ring, turn = self._rings[record.class_noun], self._turn[record.id]
        steps = range(min(len(ring), MAX_LOOKALIKES + 1))
        around = [self._first + ring[(turn + step) % len(ring)] for step in steps]
        return [self.base_of(index), *around]

    def publish(self, index: int, own: Result, shared: Mapping[int, Result]) -> None:
        record = self.records[index]
        of_base, mine, *others = self.needed(index)
        photographs = {record.id: _embeddings(shared[mine])}
        for number in others:
            if shared[number].error is None:
                name = self._gallery[number - self._first].id
                photographs[name] = _embeddings(shared[number])
        num_images = self._measure.scoring.images
        embedded = _embeddings(own), _embeddings(shared[of_base])
        scores = score(*embedded, record.id, photographs, num_images)
        request = describe(self._measure, record.class_noun, record.identifier)
        files = layout.files_of(scores, request)
        layout.annex(self._store, record.name).publish(files)


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
        copies=figures.copies(own["subject"], mine),
        diversity=_diversity(own["subject"], num_images),
        base_diversity=_diversity(of_base["subject"], num_images),
        **_by_clip(own, of_base, photographs[subject]),
        **_without_subject(own, of_base, mine, num_images),
    )


def _by_clip(own: Embeddings, of_base: Embeddings, mine: Embeddings) -> dict[str, float | None]:
    if "seen" not in own:
        return {"prompt": None, "base_prompt": None}
    return {
        "prompt": figures.prompt_fidelity(own["seen"], own["asked"]),
        "base_prompt": figures.prompt_fidelity(of_base["seen"], own["asked"]),
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


def _embeddings(result: Result) -> Embeddings:
    """The embeddings of a result. Raises the error that it holds instead."""
    return load_tensors(result.checked()[_FILE])
