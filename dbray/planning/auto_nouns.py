"""`class_noun: auto`: the class noun that a CLIP reads from a subject's photographs.

Owns the choice among the known nouns, and when the user is asked instead. Torch is loaded only if a
subject needs it. Source: Ruiz et al. 2022 (arXiv 2208.12242), section 3.2, where a class noun "can
be obtained using a classifier"; zero-shot classification as in Radford et al. 2021 (2103.00020).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from dbray.bases import Base
from dbray.errors import BaseError, DbrayError, Problem
from dbray.planning.known_nouns import nouns_of
from dbray.scores import embedders
from dbray.spec.job import Job
from dbray.spec.prompts import AUTO_NOUN, fill_prompt
from dbray.spec.subject import Subject
from dbray.storage.store import read_uri
from dbray.subjects.images import MAX_IMAGE_BYTES, decode
from dbray.subjects.validation import CheckedSubject

if TYPE_CHECKING:
    from torch import Tensor

    from dbray.scores.embedders import LoadedEmbedder

MIN_SHARE = 0.5
"""Below this probability of the most likely noun, the user is asked."""
_NUM_NAMED = 3
_PROMPT = "a photo of a {class}"


@dataclass(frozen=True)
class ChosenNoun:
    """A class noun, and its probability among the known ones."""

    noun: str
    share: float


@dataclass
class Settled:
    """Subjects with class nouns; those for which the user is asked; and the choices, by id."""

    subjects: list[CheckedSubject] = field(default_factory=list)
    undecided: list[Subject] = field(default_factory=list)
    chosen: dict[str, ChosenNoun] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def settle(
    subjects: Sequence[CheckedSubject], job: Job, base: Base, where: Callable[[str], str]
) -> Settled:
    """Choose the class nouns that are left to dbray, by the CLIP of the job's scoring."""
    settled = Settled()
    wanted = [one for one in subjects if one.subject.class_noun == AUTO_NOUN]
    if not wanted:
        settled.subjects = list(subjects)
        return settled
    try:
        classifier = _load(job, base)
    except BaseError as exc:
        fix = ("set scoring.clip to a CLIP, a folder or a hub id such as "
               "openai/clip-vit-base-patch32, or write the class nouns")  # fmt: skip
        what = f"class_noun: auto of {len(wanted)} subject(s): {exc}"
        settled.problems.append(Problem("error", where("scoring"), what, fix))
        settled.undecided = [one.subject for one in wanted]
        settled.subjects = [one for one in subjects if one not in wanted]
        return settled
    for one in subjects:
        _settle_one(one, classifier, settled)
    return settled


def _load(job: Job, base: Base) -> _Classifier:
    if job.scoring.clip is None:
        raise BaseError("no CLIP is named")
    found = embedders.resolve(job.scoring.clip, job.scoring.clip_revision)
    if not found.reads_text:
        raise BaseError(f"{found.name} reads no text, so it is not a CLIP")
    return _Classifier(embedders.load(found), nouns_of(base))


def _settle_one(one: CheckedSubject, classifier: _Classifier, settled: Settled) -> None:
    subject = one.subject
    if subject.class_noun != AUTO_NOUN:
        settled.subjects.append(one)
        return
    try:
        best = classifier.best(subject.images)
    except DbrayError as exc:
        settled.undecided.append(subject)
        what, fix = f"class_noun: auto: {exc}", "replace the image, or write the class noun"
        settled.problems.append(_error(subject, what, fix))
        return
    if best[0].share < MIN_SHARE:
        settled.undecided.append(subject)
        settled.problems.append(_error(subject, *_doubt(best)))
        return
    settled.chosen[subject.id] = best[0]
    named = subject.model_copy(update={"class_noun": best[0].noun})
    settled.subjects.append(replace(one, subject=named))


def _doubt(best: Sequence[ChosenNoun]) -> tuple[str, str]:
    likely = ", ".join(f"{one.noun} {one.share:.0%}" for one in best[:_NUM_NAMED])
    what = f"class_noun: auto is not certain of the class: {likely}"
    return what, f"write the class noun, such as {best[0].noun!r}, in the place of auto"


def _error(subject: Subject, what: str, fix: str) -> Problem:
    return Problem("error", f"subject {subject.id}", what, fix, subject.id)


class _Classifier:
    """A CLIP with the embeddings of all known nouns."""

    def __init__(self, clip: LoadedEmbedder, nouns: Sequence[str]) -> None:
        self._clip, self._nouns = clip, nouns
        self._texts = clip.texts([fill_prompt(_PROMPT, noun) for noun in nouns])

    def best(self, images: Sequence[str]) -> list[ChosenNoun]:
        """Return the nouns from the most likely on. Raises StoreError, SubjectError."""
        shares = self._shares(self._clip.images(list(self._pixels(images))))
        order = map(int, shares.argsort(descending=True))
        return [ChosenNoun(self._nouns[place], float(shares[place])) for place in order]

    def _shares(self, photographs: Tensor) -> Tensor:
        """Mean probability of each noun over the photographs, so that each has one vote."""
        logits = self._clip.scale * photographs @ self._texts.T
        return logits.softmax(dim=1).mean(dim=0)

    @staticmethod
    def _pixels(images: Sequence[str]) -> Iterator:
        import numpy as np

        for image in images:
            yield np.asarray(decode(read_uri(image, MAX_IMAGE_BYTES), image))
