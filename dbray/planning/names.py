"""Which identifier each subject of a job goes by: the user's, the one it has, or a new one.

Owns that choice and what there is to say against it. What makes a token rare is
dbray.planning.identifiers'. Needs neither torch nor Ray, so that `dbray validate` can ask it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from dbray.bases import Base, load_tokenizer
from dbray.errors import BaseError, Problem, SpecError
from dbray.planning import identifiers
from dbray.planning.identifiers import Vocabulary
from dbray.records.models import ModelRecord, Registry
from dbray.spec.job import Job
from dbray.spec.prompts import fill_prompt
from dbray.spec.subject import Subject

_LEAVE_OUT = "leave the identifier out, and dbray finds a rare one"


@dataclass(frozen=True, slots=True)
class _Published:
    """What of a published model decides about names; of 100,000 records, curves fill gigabytes."""

    tenant: str | None
    identifier: str
    base_digest: str

    @classmethod
    def of(cls, record: ModelRecord) -> _Published:
        return cls(record.tenant, record.identifier, record.base_digest)


def name_subjects(
    job: Job, base: Base, subjects: Sequence[Subject], registry: Registry
) -> tuple[dict[str, str], list[Problem]]:
    """Give every subject an identifier.

    Returns:
        Identifiers by subject id, and warnings.

    Raises:
        SpecError: a subject has the id of another tenant's model or an identifier of spaces, or
            the vocabulary has no identifier left for every subject.
    """
    tokenizer, texts = load_tokenizer(base), _texts_in_use(job, subjects)
    given, warnings = _given(job, tokenizer, subjects, texts)
    ids = {subject.id for subject in subjects}
    published = {record.id: _Published.of(record) for record in registry.list()}
    _check_tenants(job, {name: published[name] for name in published.keys() & ids})
    rare = identifiers.candidates(tokenizer, job.identifiers.rank_range, ())
    good = set(rare)
    own = {
        subject_id: published[subject_id].identifier
        for subject_id in published.keys() & ids - given.keys()
        if _may_stay(published[subject_id], base, good, job.identifiers.num_tokens)
    }
    taken = {one.identifier for name, one in published.items() if name not in ids}
    warnings += _shared_names(given | own, taken)
    candidates = identifiers.unused(rare, texts)
    return _draw_names(job, candidates, [one.id for one in subjects], given, own, taken), warnings


def check_names(job: Job, base: Base, subjects: Sequence[Subject]) -> list[Problem]:
    """Say what is wrong with the identifiers that a job gives or asks for; asks no registry."""
    problems: list[Problem] = []
    try:
        tokenizer, texts = load_tokenizer(base), _texts_in_use(job, subjects)
        given, findings = _given(job, tokenizer, subjects, texts)
        problems += findings + _shared_names(given, ())
        candidates = identifiers.candidates(tokenizer, job.identifiers.rank_range, texts)
        _draw_names(job, candidates, [one.id for one in subjects], given, {}, set())
    except SpecError as exc:
        problems += exc.problems
    except BaseError as exc:
        problems.append(Problem("error", "base", str(exc), "mend it, or change 'base'"))
    return problems


def _check_tenants(job: Job, published: Mapping[str, _Published]) -> None:
    """Refuse ids that are another tenant's. Raises SpecError."""
    foreign = sorted(name for name, one in published.items() if one.tenant != job.tenant)
    fix = "choose another id, or the right 'tenant' of the job"
    _refuse(foreign, "its id is another tenant's in this registry", fix)


def _refuse(subject_ids: Collection[str], what: str, fix: str) -> None:
    """Raise SpecError that names these subjects, if there are any."""
    if subject_ids:
        raise SpecError(Problem("error", f"subject {one}", what, fix, one) for one in subject_ids)


def _given(
    job: Job, tokenizer: Vocabulary, subjects: Sequence[Subject], texts: Sequence[str]
) -> tuple[dict[str, str], list[Problem]]:
    """The identifiers that the user chose, and what speaks against them.

    Raises:
        SpecError: one of them is nothing but spaces.
    """
    given = {one.id: one.identifier for one in subjects if one.identifier}
    blank = [subject_id for subject_id, identifier in given.items() if not identifier.strip()]
    _refuse(blank, "its identifier of spaces names nothing", _LEAVE_OUT)
    findings = identifiers.check_identifiers(
        tokenizer, given.values(), texts, job.identifiers.rank_range
    )
    return given, [
        Problem("warning", f"subject {subject_id}", finding, _LEAVE_OUT, subject_id)
        for subject_id, identifier in given.items()
        for finding in findings[identifier]
    ]


def _draw_names(
    job: Job,
    candidates: list[str],
    ids: list[str],
    given: dict[str, str],
    own: dict[str, str],
    taken: set[str],
) -> dict[str, str]:
    """Draw with as many tokens as the job says, else with the fewest that suffice for all of it.

    How many of it have their `own` already is without effect on that: when a job is continued, the
    subjects that are left go by the names that they had.
    """
    wanted, used = len(set(ids) - given.keys()), {*given.values(), *taken}
    num_tokens = job.identifiers.num_tokens or identifiers.fewest_tokens(candidates, wanted, used)
    return identifiers.assign(candidates, ids, given | own, taken, job.identifiers.seed, num_tokens)


def _may_stay(model: _Published, base: Base, good: set[str], num_tokens: int | None) -> bool:
    """Whether a published model's identifier is one that would be drawn for this base today."""
    words = model.identifier.split()
    return (
        model.base_digest == base.digest
        and good.issuperset(words)
        and num_tokens in (None, len(words))
    )


def _shared_names(names: Mapping[str, str], taken: Iterable[str]) -> list[Problem]:
    """Warn of identifiers that two subjects share: a prompt does not say which one it means."""
    holders = {identifiers.normal_form(one): "a published model" for one in taken}
    problems = []
    for subject_id, name in names.items():
        form = identifiers.normal_form(name)
        if form in holders:
            problems.append(Problem("warning", f"subject {subject_id}",
                                    f"its identifier {name!r} is that of {holders[form]} too",
                                    "give each subject its own", subject_id))  # fmt: skip
        holders[form] = f"subject {subject_id}"
    return problems


def _texts_in_use(job: Job, subjects: Sequence[Subject]) -> list[str]:
    """Class nouns, prompts and captions: no identifier may be a word of one of them."""
    texts = {job.prior.prompt, *job.previews.prompts}
    for subject in subjects:
        texts |= {subject.class_noun, *(subject.captions or ())}
    return [fill_prompt(text, "", "") for text in sorted(texts)]
