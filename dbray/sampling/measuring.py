"""What is sampled and embedded for scores, by sampling actors.

Owns the prompts and seeds of a measurement, the file that describes it, and the actor: photographs
of a subject, images of a model, images of the base. Does not know which are compared: see
dbray.sampling.scores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from dbray.bases import Backbone, Base
from dbray.bases.generate import Sampling, generate_in_batches
from dbray.records import scores as layout
from dbray.sampling.joining import ModelActor
from dbray.sampling.pool import Result
from dbray.scores import embedders
from dbray.scores.embedders import Embedder, LoadedEmbedder
from dbray.scores.perceptual import PerceptualDistance
from dbray.scores.thumbnails import thumbnails
from dbray.spec.prompts import fill_prompt
from dbray.spec.sections import Previews, Scoring
from dbray.spec.suites import is_living
from dbray.storage.store import Store, read_uri
from dbray.subjects.images import MAX_IMAGE_BYTES, decode, encode_webp
from dbray.training.losses import seed_of

_FILE = "embeddings"
_IMAGE_QUALITY = 90
MAX_IMAGE_SIDE = 512
"""Of the images that are kept."""

Embeddings = Mapping[str, Tensor]
"""By name: `subject`, `class` and, if there are such prompts, `unrelated` rows of the identity
embedder; `thumbnails` of the subject's images; of the CLIP, if there is one, `seen` of the
subject's images and `asked` of their prompts.
"""
_VERSION = 3
"""Of what is computed from equal requests; earlier scores are made again."""


@dataclass(frozen=True)
class Measure:
    """What a job measures: how images are sampled, and the embedders that compare them."""

    scoring: Scoring
    sampling: Sampling
    identity: Embedder
    clip: Embedder | None
    live_prompts: tuple[str, ...] | None = None
    """In the place of the prompts of `scoring`, for living subjects."""
    keeps_images: bool = False

    def prompts_for(self, class_noun: str) -> tuple[str, ...]:
        """Return the templates of the subject's prompts."""
        if self.live_prompts is not None and is_living(class_noun):
            return self.live_prompts
        return self.scoring.prompts

    def seeds(self) -> list[int]:
        """Return the seed of each image of a prompt."""
        return [seed_of(self.scoring.seed, index) for index in range(self.scoring.images)]

    def each(self, prompts: Sequence[str]) -> tuple[list[str], list[int]]:
        """Return the prompt and the seed of every image, prompt by prompt."""
        seeds = self.seeds()
        return [prompt for prompt in prompts for _ in seeds], seeds * len(prompts)


def measure_of(scoring: Scoring, previews: Previews) -> Measure | None:
    """Find the embedders of a job; None if it has none. Raises BaseError."""
    if scoring.embedder is None:
        return None
    if scoring.perceptual:
        embedders.find_perceptual_weights()
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
        "prompts": _prompts(measure.prompts_for(class_noun), class_noun, identifier),
        "class_prompts": _prompts(scoring.class_prompts, class_noun, None),
        "perceptual": scoring.perceptual,
        "images": scoring.images,
        "seed": scoring.seed,
        "sampling": measure.sampling.identity(),
    }
    return {layout.REQUEST: json.dumps(value, indent=1, ensure_ascii=False).encode()}


def _prompts(templates: Sequence[str], class_noun: str, identifier: str | None) -> list[str]:
    return [fill_prompt(template, class_noun, identifier) for template in templates]


def filled_prompts(measure: Measure, class_noun: str, identifier: str) -> list[str]:
    """Return the subject's prompts, as they are sampled."""
    return _prompts(measure.prompts_for(class_noun), class_noun, identifier)


def embeddings_of(result: Result) -> Embeddings:
    """Return the embeddings of a result. Raises the error that it holds instead."""
    return load_tensors(result.checked()[_FILE])


def pictures_of(result: Result) -> list[bytes]:
    """Return the images of a result as WebP, in order; empty if they were not kept."""
    found = result.checked()
    return [found[name] for name in sorted(found) if name != _FILE]


def _files(found: Mapping[str, Tensor]) -> dict[str, bytes]:
    return {_FILE: save_tensors(dict(found))}


def _pictures(images: Sequence[np.ndarray]) -> dict[str, bytes]:
    return {
        f"{number:06}.webp": encode_webp(image, _IMAGE_QUALITY, MAX_IMAGE_SIDE)
        for number, image in enumerate(images)
    }


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
            return _files(self._photographs(task["photographs"]))
        if "description" in task:
            return self._described(task)
        if task["model"] is None:
            return self._images(self.with_base(task), task["class_noun"], None)
        record, backbone = self.with_model(task["model"])
        return self._images(backbone, record.class_noun, record.identifier)

    def _photographs(self, uris: Sequence[str]) -> Embeddings:
        pictures = [np.asarray(decode(read_uri(uri, MAX_IMAGE_BYTES), uri)) for uri in uris]
        found = self._looks(pictures)
        if self._measure.clip is not None:
            found["seen"] = self._embedder(self._measure.clip).images(pictures)
        return found

    def _looks(self, pictures: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """Embed pictures of the subject by identity, and as thumbnails."""
        identity = self._embedder(self._measure.identity)
        return {"subject": identity.images(pictures), "thumbnails": thumbnails(pictures)}

    def _images(
        self, backbone: Backbone, class_noun: str, identifier: str | None
    ) -> dict[str, bytes]:
        """Sample and embed; the images themselves are returned for a model only."""
        measure = self._measure
        templates = measure.prompts_for(class_noun)
        images = self._sample(backbone, _prompts(templates, class_noun, identifier))
        found = self._embedded(images, _prompts(templates, class_noun, None))
        for kind, others in _kinds(measure.scoring.class_prompts).items():
            of_kind = self._sample(backbone, _prompts(others, class_noun, None))
            found[kind] = self._embedder(measure.identity).images(of_kind)
        keeps = measure.keeps_images and identifier is not None
        return _files(found) | (_pictures(images) if keeps else {})

    def _described(self, task: dict[str, Any]) -> dict[str, bytes]:
        """Sample and embed the base's images of a description in the place of the subject."""
        templates = self._measure.prompts_for(task["class_noun"])
        prompts = _prompts(templates, task["description"], None)
        images = self._sample(self.with_base(task), prompts)
        return _files(self._embedded(images, _prompts(templates, task["class_noun"], None)))

    def _embedded(self, images: Sequence[np.ndarray], prompts: Sequence[str]) -> dict[str, Tensor]:
        """Embed images of the subject; `prompts` lack the identifier, which no CLIP knows."""
        found = self._looks(images)
        if self._measure.scoring.perceptual:
            found["spread"] = torch.tensor(self._spreads(images))
        if self._measure.clip is not None:
            reader = self._embedder(self._measure.clip)
            found["seen"] = reader.images(images)
            asked = reader.texts(prompts)
            found["asked"] = asked.repeat_interleave(self._measure.scoring.images, dim=0)
        return found

    def _spreads(self, images: Sequence[np.ndarray]) -> list[float]:
        """Return the mean perceptual distance between the images of each prompt."""
        count = self._measure.scoring.images
        starts = range(0, len(images), count)
        return [self._distance.spread(images[start : start + count]) for start in starts]

    @cached_property
    def _distance(self) -> PerceptualDistance:
        return PerceptualDistance(embedders.find_perceptual_weights(), self._device)

    def _sample(self, backbone: Backbone, prompts: Sequence[str]) -> Any:
        """Sample `images` images of each prompt, prompt by prompt: (N, H, W, 3)."""
        sampling = self._measure.sampling.through(self.stage)
        return generate_in_batches(backbone, *self._measure.each(prompts), sampling)

    def _embedder(self, embedder: Embedder) -> LoadedEmbedder:
        if embedder.digest not in self._loaded:
            here = embedders.find_on_this_node(embedder)
            self._loaded[embedder.digest] = embedders.load(here, self._device)
        return self._loaded[embedder.digest]
