"""What photographs show, by the CLIP of a job's scoring: the most likely of several texts.

Source: zero-shot classification, Radford et al. 2021 (arXiv 2103.00020). Torch is loaded here, and
only when photographs are looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from dbray.errors import BaseError
from dbray.scores import embedders
from dbray.spec.job import Job
from dbray.storage.store import read_uri
from dbray.subjects.images import MAX_IMAGE_BYTES, decode

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from dbray.scores.embedders import LoadedEmbedder


class Classifier:
    """A CLIP with the embeddings of the texts that photographs are compared with."""

    def __init__(self, clip: LoadedEmbedder, texts: Sequence[str]) -> None:
        self._clip, self._texts = clip, clip.texts(list(texts))

    def shares(self, photographs: Sequence[str]) -> Tensor:
        """Return the probability of each text, (photographs, texts).

        Raises:
            StoreError, SubjectError: a photograph cannot be read.
        """
        seen = self._clip.images(list(_pixels(photographs)))
        return (self._clip.scale * seen @ self._texts.T).softmax(dim=1)


def load(job: Job, texts: Sequence[str]) -> Classifier:
    """Load the CLIP of a job's scoring. Raises BaseError if it names none, or it cannot be read."""
    if job.scoring.clip is None:
        raise BaseError("no CLIP is named")
    found = embedders.resolve(job.scoring.clip, job.scoring.clip_revision)
    if not found.reads_text:
        raise BaseError(f"{found.name} reads no text, so it is not a CLIP")
    return Classifier(embedders.load(found), texts)


def _pixels(photographs: Sequence[str]) -> Iterator[np.ndarray]:
    import numpy as np

    for place in photographs:
        yield np.asarray(decode(read_uri(place, MAX_IMAGE_BYTES), place))
