"""Prompts that a base does not read to their end: which, and how much of them it reads.

Owns what is an error (the subject or its class noun is not read) and what is a warning (only the
rest is not).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dbray.bases import Base
from dbray.bases.reading import Reader
from dbray.errors import BaseError, Problem
from dbray.spec.job import Job
from dbray.spec.prompts import fill_prompt, named_until
from dbray.spec.subject import Subject

_SHOWN = 40


@dataclass(frozen=True)
class Prompt:
    """A prompt with placeholders, and what fills them."""

    template: str
    class_noun: str
    identifier: str | None
    where: str
    subject_id: str | None = None

    @property
    def filled(self) -> str:
        """The prompt as the base gets it."""
        return fill_prompt(self.template, self.class_noun, self.identifier)

    @property
    def needed(self) -> int:
        """Characters up to the end of the first name of the subject, or else of its class."""
        return named_until(self.template, self.class_noun, self.identifier)


def check_job_prompts(
    job: Job,
    base: Base,
    subjects: Sequence[Subject],
    names: Mapping[str, str],
    where: Callable[[str], str],
) -> list[Problem]:
    """Check captions, class-image prompts and preview prompts of a job.

    Args:
        job: with the prompts.
        base: whose tokenizer decides.
        subjects: with the captions.
        names: the subjects' identifiers. Where a plan chooses others, they have as many tokens.
        where: the line of a section of the job.
    """
    prompts = [*_captions(subjects, names), *_of_classes(job, subjects, names, where)]
    try:
        return check_prompts(prompts, Reader.of(base))
    except BaseError as exc:
        return [Problem("error", "base", str(exc), "repair it, or change 'base'")]


def check_prompts(prompts: Iterable[Prompt], reader: Reader) -> list[Problem]:
    """Report prompts that are not read to their end: of each place the worst, and how many."""
    filled = {prompt: prompt.filled for prompt in prompts}
    cut = reader.cut(filled.values())
    found: dict[tuple[str, str], list[Prompt]] = {}
    for prompt, text in filled.items():
        if text in cut:
            severity = "error" if cut[text] < prompt.needed else "warning"
            found.setdefault((prompt.where, severity), []).append(prompt)
    return [
        _problem(group, cut[filled[group[0]]], is_error=severity == "error")
        for (_, severity), group in found.items()
    ]


def _captions(subjects: Sequence[Subject], names: Mapping[str, str]) -> Iterator[Prompt]:
    for one in subjects:
        for caption in one.captions or ():
            yield Prompt(caption, one.class_noun, names.get(one.id), f"subject {one.id}", one.id)


def _of_classes(
    job: Job, subjects: Sequence[Subject], names: Mapping[str, str], where: Callable[[str], str]
) -> Iterator[Prompt]:
    """The prompts that all subjects of a class share, each with the longest identifier."""
    longest: dict[str, str] = {}
    for one in subjects:
        longest[one.class_noun] = max(
            longest.get(one.class_noun, ""), names.get(one.id, ""), key=len
        )
    for section, template, names_subject in _templates(job):
        for noun, identifier in sorted(longest.items()):
            yield Prompt(template, noun, identifier if names_subject else None, where(section))


def _templates(job: Job) -> Iterator[tuple[str, str, bool]]:
    """Yield section, template, and whether the identifier is filled in."""
    scoring, stop = job.scoring, job.recipe.stop
    if job.recipe.prior_weight > 0:
        yield "prior", job.prior.prompt, False
    yield "recipe", job.recipe.prompt, True
    yield from (("previews", template, True) for template in job.previews.prompts)
    if scoring.embedder is not None:
        yield from (("scoring", template, True) for template in scoring.prompts)
        yield from (("scoring", template, False) for template in scoring.class_prompts)
    if stop is not None:
        yield from (("recipe", template, True) for template in stop.prompts)
        yield from (("recipe", template, False) for template in stop.class_prompts)


def _problem(group: Sequence[Prompt], num_read: int, is_error: bool) -> Problem:
    first = group[0]
    text, others = first.filled, len(group) - 1
    unread = text[num_read:].strip()
    what = f"the base does not read {text[:_SHOWN]!r}... beyond {num_read} characters: "
    what += f"{unread[:_SHOWN]!r}{'...' if len(unread) > _SHOWN else ''} is cut off"
    if others:
        what += f", and so are the ends of {others} other prompts"
    fix = f"shorten it to {num_read} characters"
    if is_error:
        what += "; what is cut off names the subject or its class"
        fix = "name the subject or its class nearer to the beginning, or shorten the prompt"
    severity = "error" if is_error else "warning"
    return Problem(severity, first.where, what, fix, first.subject_id)
