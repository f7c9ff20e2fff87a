"""Class nouns that the base may not know, that make odd prompts, or two sets of class images.

They are warnings: nothing is normalised, because a class noun is part of what a published model is
known by.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from dbray.bases import Base
from dbray.errors import Problem
from dbray.planning.identifiers import Vocabulary
from dbray.spec.prompts import NO_NOUN
from dbray.spec.subject import Subject

_MAX_WORDS, _MAX_NAMED = 3, 3
_ARTICLE = re.compile(r"(an?|the|one|my|this)\s+(?=\S)", re.IGNORECASE)
_SENTENCE = re.compile(r"\b(of|with|photo|photograph|picture|image)\b", re.IGNORECASE)
_PLURAL = re.compile(
    r"(.{2,}(?<![suiao])s|people|children|(wo)?men|mice|geese|feet|teeth)$", re.IGNORECASE
)
# Words in -s that name one thing.
_SINGULAR = re.compile(
    r"(glasses|scissors|trousers|pants|jeans|shorts|goggles|headphones|earphones|binoculars|pliers"
    r"|tongs|tights|lens|news|species|series)$",
    re.IGNORECASE,
)


def check_nouns(tokenizer: Vocabulary, subjects: Sequence[Subject]) -> Iterator[Problem]:
    """Report each doubtful class noun once, at the first subject that has it."""
    read: dict[tuple[int, ...], str] = {}
    for noun, subject in _first_of_each(subjects).items():
        tokens = tuple(tokenizer.encode(noun, add_special_tokens=False))
        reason = _doubt(noun) or _same(noun, read.setdefault(tokens, noun))
        if reason is not None:
            what, fix = reason
            yield Problem("warning", f"subject {subject.id}", f"class noun {noun!r}: {what}", fix,
                          subject.id)  # fmt: skip


def check_known(base: Base, subjects: Sequence[Subject]) -> Iterator[Problem]:
    """Report, in one line, class nouns that the base's makers do not list, where they list any."""
    known = {noun.lower() for noun in base.class_nouns} | {NO_NOUN}
    first = _first_of_each(subjects)
    unknown = sorted(noun for noun in first if noun.lower() not in known)
    if not base.class_nouns or not unknown:
        return
    more = len(unknown) - _MAX_NAMED
    named = ", ".join(map(repr, unknown[:_MAX_NAMED])) + (f" and {more} more" if more > 0 else "")
    what = (f"class noun {named}: the base {base.name} draws {len(base.class_nouns)} classes: "
            f"{', '.join(base.class_nouns)}")  # fmt: skip
    where = first[unknown[0]].id
    fix = "set base to one that knows the class"
    yield Problem("warning", f"subject {where}", what, fix, where)


def _first_of_each(subjects: Sequence[Subject]) -> dict[str, Subject]:
    """Return the first subject of every class noun."""
    first: dict[str, Subject] = {}
    for subject in subjects:
        first.setdefault(subject.class_noun, subject)
    return first


def _doubt(noun: str) -> tuple[str, str] | None:
    words = noun.split()
    if len(words) > _MAX_WORDS or _SENTENCE.search(noun):
        what = "a class noun is one or two words, and every prompt has it in its middle"
        return what, f"write the class alone, such as {words[-1]!r}"
    if article := _ARTICLE.match(noun):
        return f"prompts would say 'a {noun}'", f"write {noun[article.end() :]!r}"
    if _PLURAL.search(words[-1]) and not _SINGULAR.search(words[-1]):
        return f"it looks like a plural, and prompts say 'a {noun}'", "write it in the singular"
    return None


def _same(noun: str, earlier: str) -> tuple[str, str] | None:
    if noun == earlier:
        return None
    what = f"the base reads it as {earlier!r}, and each has class images of its own"
    return what, f"write both as {min(noun.lower(), earlier.lower())!r}"
