"""Photographs of people: do they show one person, several, or nobody?

Owns the class nouns that mean a person, and the warnings. A second face in a photograph is learnt
as part of the subject. A CLIP looks, where the job's scoring names one; it looks at every
photograph, so only `dbray validate` asks for it.
"""

from __future__ import annotations

from collections.abc import Iterator

from dbray.errors import BaseError, DbrayError, Problem
from dbray.planning import zero_shot
from dbray.planning.checked import Checked
from dbray.planning.zero_shot import Classifier
from dbray.spec.subject import Subject

PERSON_NOUNS = frozenset({
    "actor", "actress", "baby", "boy", "bride", "child", "face", "girl", "groom", "guy",
    "human", "kid", "lady", "man", "person", "teenager", "toddler", "woman",
})  # fmt: skip
MIN_SHARE = 0.8
"""Below this probability nothing is said: the look is only a hint."""
_TEXTS = ("a photo of one person", "a photo of several people", "a photo without any people")
_FAULTS = {
    1: ("may show several people", "crop them to the subject"),
    2: ("may show nobody", "replace them by photographs of the subject"),
}
"""By the place of the text."""


def is_person(class_noun: str) -> bool:
    """Whether a class noun means a person, such as "young woman"."""
    return class_noun.lower().rpartition(" ")[2] in PERSON_NOUNS


def look(checked: Checked) -> list[Problem]:
    """Look at the photographs of people; nothing is found where no CLIP is at hand."""
    people = [one.subject for one in checked.subjects if is_person(one.subject.class_noun)]
    if not people or checked.job is None:
        return []
    try:
        classifier = zero_shot.load(checked.job, _TEXTS)
    except BaseError:
        return []  # a CLIP that is named and missing is an error already
    return [problem for one in people for problem in _faults(one, classifier)]


def _faults(subject: Subject, classifier: Classifier) -> Iterator[Problem]:
    try:
        shares = classifier.shares(subject.images)
    except DbrayError as exc:
        yield _warning(subject, str(exc), "replace the image")
        return
    for place, (what, fix) in _FAULTS.items():
        found = [image for image, share in zip(subject.images, shares[:, place], strict=True)
                 if share >= MIN_SHARE]  # fmt: skip
        if found:
            named = ", ".join(image.rpartition("/")[2] for image in found)
            yield _warning(subject, f"{named} {what}", fix)


def _warning(subject: Subject, what: str, fix: str) -> Problem:
    return Problem("warning", f"subject {subject.id}", what, fix, subject.id)
