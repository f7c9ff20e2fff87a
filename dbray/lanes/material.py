"""The training data of a subject: its photographs, prompts and class images, read and encoded.

All is encoded with base weights. The latents of class images come from dbray.lanes.prior_latents.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
from PIL import Image

from dbray.bases import Backbone
from dbray.bases.condition import Condition
from dbray.bases.low_images import LowImages
from dbray.errors import SubjectError
from dbray.lanes.beat import Beat
from dbray.lanes.prior_latents import NUM_WARM_PRIORS, PriorLatents, class_images
from dbray.method.methods import method_of
from dbray.planning.cascade import recipe_of
from dbray.planning.plan import PlannedSubject
from dbray.spec.job import Job
from dbray.spec.prompts import fill_prompt
from dbray.spec.super_resolution import SuperResolution
from dbray.storage.store import Store, digest, read_uri
from dbray.subjects import buckets, images
from dbray.training.data import (
    Latents,
    TrainingData,
    encode_subject,
    instance_prompts,
    low_images,
)


class Material:
    """Reads and encodes the subjects of one job, on one rank of a lane."""

    def __init__(
        self, job: Job, backbone: Backbone, section: SuperResolution | None = None
    ) -> None:
        """`section` is the job's about the backbone, if it is the second stage of a cascade."""
        self._job, self._backbone, self._section = job, backbone, section
        self._recipe = recipe_of(job, section)
        self._method = method_of(self._recipe.method)
        self._store = Store(job.storage)
        self._priors = PriorLatents(self._store, backbone)
        self._low = lru_cache(NUM_WARM_PRIORS)(self._low_images)
        # As few as the priors: conditions are on the device.
        self._class_prompt = lru_cache(NUM_WARM_PRIORS)(self._condition_of)

    def of(self, planned: PlannedSubject, beat: Beat) -> TrainingData:
        """Read and encode a subject. The backbone holds base weights.

        Raises:
            SubjectError: a photograph has changed since it was validated.
            StoreError: a photograph or class image cannot be read.
        """
        subject, recipe, section = planned.subject, self._recipe, self._section
        with beat.meanwhile():
            views = self._read(planned)
        level = None if section is None else section.noise_level
        latents, views_of_image = encode_subject(self._backbone, views, recipe, level)
        prompts = instance_prompts(
            planned.identifier, subject.class_noun, subject.captions, recipe, len(views)
        )
        class_prompt = fill_prompt(self._job.prior.prompt, subject.class_noun)
        return TrainingData(
            # Each stage has random draws of its own.
            subject_id=subject.id if section is None else f"{subject.id}/super_resolution",
            views=latents,
            views_of_image=views_of_image,
            instance=self._method.condition(self._backbone, recipe, prompts),
            prior=self._prior(planned, beat),
            prior_prompt=self._class_prompt(class_prompt),
            photographs=tuple(crops[len(crops) // 2] for crops in views),
        )

    def _prior(self, planned: PlannedSubject, beat: Beat) -> Latents | None:
        """Latents of the class images; with the low ones that they were enlarged from, if any."""
        if self._section is None:
            digest = planned.prior_digest
            return self._priors.of(digest, beat) if digest else None
        if planned.enlarged_digest is None or planned.low_digest is None:
            return None
        with beat.meanwhile():
            low = self._low(planned.low_digest, self._section.noise_level)
        return replace(self._priors.of(planned.enlarged_digest, beat), low=low)

    def _low_images(self, prior_digest: str, level: int) -> LowImages:
        side = self._backbone.resolution // self._backbone.base.scale
        return low_images(self._backbone, class_images(self._store, prior_digest, side), level)

    def _condition_of(self, prompt: str) -> Condition:
        """Condition of a class prompt. A lane has one base, so the prompt alone decides it."""
        return self._method.condition(self._backbone, self._recipe, [prompt])

    def _read(self, planned: PlannedSubject) -> list[list[np.ndarray]]:
        """Read the subject's images; return the crops of each."""
        views = []
        for uri, expected in zip(planned.subject.images, planned.image_digests, strict=True):
            data = read_uri(uri, images.MAX_IMAGE_BYTES)
            if digest(data) != expected:
                raise SubjectError(f"{uri} has changed since the job was validated; run again")
            image = images.decode(data, uri)
            views.append(self._views(image))
        return views

    def _views(self, image: Image.Image) -> list[np.ndarray]:
        """Cut a photograph as the recipe says."""
        resolution, crop = self._backbone.resolution, self._recipe.crop
        if crop != "bucket":
            return images.views(image, resolution, crop)
        step = buckets.step_of(resolution, self._backbone.latent_shape()[1])
        return [buckets.cut(image, resolution, step)]
