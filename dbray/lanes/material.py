"""The training data of a subject: its photographs, prompts and class images, read and encoded.

All is encoded with base weights. The latents of class images come from dbray.lanes.prior_latents.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

from dbray.bases import Backbone
from dbray.bases.condition import Condition
from dbray.errors import SubjectError
from dbray.lanes.beat import Beat
from dbray.lanes.prior_latents import NUM_WARM_PRIORS, PriorLatents
from dbray.method.methods import method_of
from dbray.planning.plan import PlannedSubject
from dbray.spec.job import Job
from dbray.spec.prompts import fill_prompt
from dbray.storage.store import Store, digest, read_uri
from dbray.subjects import buckets, images
from dbray.training.data import TrainingData, encode_subject, instance_prompts


class Material:
    """Reads and encodes the subjects of one job, on one rank of a lane."""

    def __init__(self, job: Job, backbone: Backbone) -> None:
        self._job, self._backbone = job, backbone
        self._method = method_of(job.recipe.method)
        self._priors = PriorLatents(Store(job.storage), backbone)
        # As few as the priors: conditions are on the device.
        self._class_prompt = lru_cache(NUM_WARM_PRIORS)(self._condition_of)

    def of(self, planned: PlannedSubject, beat: Beat) -> TrainingData:
        """Read and encode a subject. The backbone holds base weights.

        Raises:
            SubjectError: a photograph has changed since it was validated.
            StoreError: a photograph or class image cannot be read.
        """
        subject, recipe, prior = planned.subject, self._job.recipe, planned.prior_digest
        with beat.meanwhile():
            views = self._read(planned)
        latents, views_of_image = encode_subject(self._backbone, views, recipe)
        prompts = instance_prompts(
            planned.identifier, subject.class_noun, subject.captions, recipe, len(views)
        )
        class_prompt = fill_prompt(self._job.prior.prompt, subject.class_noun)
        return TrainingData(
            subject_id=subject.id,
            views=latents,
            views_of_image=views_of_image,
            instance=self._method.condition(self._backbone, recipe, prompts),
            prior=self._priors.of(prior, beat) if prior else None,
            prior_prompt=self._class_prompt(class_prompt),
            photographs=tuple(crops[len(crops) // 2] for crops in views),
        )

    def _condition_of(self, prompt: str) -> Condition:
        """Condition of a class prompt. A lane has one base, so the prompt alone decides it."""
        return self._method.condition(self._backbone, self._job.recipe, [prompt])

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
        resolution, crop = self._backbone.resolution, self._job.recipe.crop
        if crop != "bucket":
            return images.views(image, resolution, crop)
        step = buckets.step_of(resolution, self._backbone.latent_shape()[1])
        return [buckets.cut(image, resolution, step)]
