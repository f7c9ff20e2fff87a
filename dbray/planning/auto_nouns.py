"""`class_noun: auto`: the class noun that a CLIP reads from a subject's photographs.

Owns the choice among the known nouns, and when the user is asked instead. Torch is loaded only if a
subject needs it. Source: Ruiz et al. 2022 (arXiv 2208.12242), section 3.2, where a class noun "can
be obtained using a classifier".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from dbray.bases import Base
from dbray.errors import BaseError, DbrayError, Problem
from dbray.planning import zero_shot
from dbray.planning.known_nouns import nouns_of
from dbray.planning.zero_shot import Classifier
from dbray.spec.job import Job
from dbray.spec.prompts import AUTO_NOUN, fill_prompt
from dbray.spec.subject import Subject
from dbray.subjects.validation import CheckedSubject

MIN_SHARE = 0.5
"""Below this probability of the most likely noun, the user is asked."""
_NUM_NAMED = 3
_PROMPT = "a photo of a {class}"


@dataclass(frozen=True)
class ChosenNoun:
    """A class noun, and its probability among the known ones."""

    noun: str
    share: float


@dataclass(frozen=True)
class _Nouns:
    """The known nouns, with what tells them apart."""

    nouns: Sequence[str]
    classifier: Classifier

    def best(self, images: Sequence[str]) -> list[ChosenNoun]:
        """Return the nouns from the most likely on. Raises StoreError, SubjectError."""
        shares = self.classifier.shares(images).mean(dim=0)  # so that each photograph has one vote
        order = map(int, shares.argsort(descending=True))
        return [ChosenNoun(self.nouns[place], float(shares[place])) for place in order]


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
        nouns = _load(job, base)
    except BaseError as exc:
        fix = ("set scoring.clip to a CLIP, a folder or a hub id such as "
               "openai/clip-vit-base-patch32, or write the class nouns")  # fmt: skip
        what = f"class_noun: auto of {len(wanted)} subject(s): {exc}"
        settled.problems.append(Problem("error", where("scoring"), what, fix))
        settled.undecided = [one.subject for one in wanted]
        settled.subjects = [one for one in subjects if one not in wanted]
        return settled
    for one in subjects:
        _settle_one(one, nouns, settled)
    return settled


def _load(job: Job, base: Base) -> _Nouns:
    nouns = nouns_of(base)
    return _Nouns(nouns, zero_shot.load(job, [fill_prompt(_PROMPT, noun) for noun in nouns]))


def _settle_one(one: CheckedSubject, nouns: _Nouns, settled: Settled) -> None:
    subject = one.subject
    if subject.class_noun != AUTO_NOUN:
        settled.subjects.append(one)
        return
    try:
        best = nouns.best(subject.images)
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
