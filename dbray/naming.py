"""Which identifier each subject of a job goes by: the user's, the one it has, or a new one.

Owns that choice and what there is to say against it. What makes a token rare is
dbray.identifiers'. Needs neither torch nor Ray, so that `dbray validate` can ask it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

from dbray import identifiers
from dbray.backbones import Base, load_tokenizer
from dbray.errors import Problem, SpecError
from dbray.identifiers import Vocabulary
from dbray.registry import ModelRecord, Registry
from dbray.spec import Job, Subject, fill_prompt


def name_subjects(
    job: Job, base: Base, subjects: Sequence[Subject], registry: Registry
) -> tuple[dict[str, str], list[Problem]]:
    """Give every subject an identifier.

    Returns:
        Identifiers by subject id, and warnings.

    Raises:
        SpecError: a subject has the id of another tenant's model, or the vocabulary has no
            identifier left for every subject.
    """
    tokenizer, texts = load_tokenizer(base), _texts_in_use(job, subjects)
    given, warnings = _given(job, tokenizer, subjects, texts)
    ids = {subject.id for subject in subjects}
    published = {record.id: record for record in registry.list()}
    foreign = sorted(name for name in published.keys() & ids
                     if published[name].tenant != job.tenant)  # fmt: skip
    if foreign:
        raise SpecError([
            Problem("error", f"subject {name}", "its id is another tenant's in this registry",
                    "choose another id, or the right 'tenant' of the job", name)
            for name in foreign
        ])  # fmt: skip
    rare = identifiers.candidates(tokenizer, job.identifiers.rank_range, ())
    good = set(rare)
    own = {
        subject_id: published[subject_id].identifier
        for subject_id in published.keys() & ids - given.keys()
        if _may_stay(published[subject_id], base, good, job.identifiers.num_tokens)
    }
    taken = {record.identifier for name, record in published.items() if name not in ids}
    warnings += _shared_names(given | own, taken)
    candidates = identifiers.unused(rare, texts)
    return _draw_names(job, candidates, [one.id for one in subjects], given | own, taken), warnings


def check_names(job: Job, base: Base, subjects: Sequence[Subject]) -> list[Problem]:
    """Say what is wrong with the identifiers that a job gives or asks for; asks no registry."""
    try:
        tokenizer, texts = load_tokenizer(base), _texts_in_use(job, subjects)
        given, problems = _given(job, tokenizer, subjects, texts)
        candidates = identifiers.candidates(tokenizer, job.identifiers.rank_range, texts)
        _draw_names(job, candidates, [one.id for one in subjects], given, set())
    except SpecError as exc:
        return list(exc.problems)
    return problems


def _given(
    job: Job, tokenizer: Vocabulary, subjects: Sequence[Subject], texts: Sequence[str]
) -> tuple[dict[str, str], list[Problem]]:
    """The identifiers that the user chose, and what speaks against them."""
    given = {one.id: one.identifier for one in subjects if one.identifier}
    findings = identifiers.check_identifiers(
        tokenizer, given.values(), texts, job.identifiers.rank_range
    )
    return given, [
        Problem("warning", f"subject {subject_id}", finding,
                "leave the identifier out, and dbray finds a rare one", subject_id)
        for subject_id, identifier in given.items()
        for finding in findings[identifier]
    ]  # fmt: skip


def _draw_names(
    job: Job, candidates: list[str], ids: list[str], given: dict[str, str], taken: set[str]
) -> dict[str, str]:
    """Draw with as many tokens as the job says, else with the fewest that suffice."""
    asked = job.identifiers.num_tokens
    for num_tokens in [asked] if asked else [1, 2]:
        with suppress(SpecError):
            return identifiers.assign(
                candidates, ids, given, taken, job.identifiers.seed, num_tokens
            )
    return identifiers.assign(candidates, ids, given, taken, job.identifiers.seed, asked or 3)


def _may_stay(record: ModelRecord, base: Base, good: set[str], num_tokens: int | None) -> bool:
    """Whether a published model's identifier is one that would be drawn for this base today."""
    words = record.identifier.split()
    return (
        record.base_digest == base.digest
        and good.issuperset(words)
        and num_tokens in (None, len(words))
    )


def _shared_names(names: dict[str, str], taken: Iterable[str]) -> list[Problem]:
    """Warn of identifiers that two subjects share: a prompt does not say which one it means."""
    seen: dict[str, str] = dict.fromkeys(taken, "a published model")
    problems = []
    for subject_id, name in names.items():
        if name in seen:
            problems.append(Problem("warning", f"subject {subject_id}",
                                    f"its identifier {name!r} is that of {seen[name]} too",
                                    "give each subject its own", subject_id))  # fmt: skip
        seen[name] = f"subject {subject_id}"
    return problems


def _texts_in_use(job: Job, subjects: Sequence[Subject]) -> list[str]:
    """Class nouns, prompts and captions: no identifier may be a word of one of them."""
    texts = {job.prior.prompt, *job.previews.prompts}
    for subject in subjects:
        texts |= {subject.class_noun, *(subject.captions or ())}
    return [fill_prompt(text, "", "") for text in sorted(texts)]
