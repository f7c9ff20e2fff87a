"""Which identifier each subject of a job gets: the user's, the published one, or a new one.

Owns that choice and the problems with it. Which tokens are rare: dbray.planning.identifiers.
Needs neither torch nor Ray, so that `dbray validate` can use it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial

from dbray.bases import Base, load_tokenizer
from dbray.errors import BaseError, Problem, SpecError
from dbray.planning import identifiers
from dbray.planning.identifiers import Vocabulary
from dbray.planning.nouns import check_known, check_nouns
from dbray.records.models import ModelRecord, Registry
from dbray.spec.job import Job
from dbray.spec.prompts import fill_prompt
from dbray.spec.subject import Subject

_LEAVE_OUT = "leave the identifier out, and dbray finds a rare one"


@dataclass(frozen=True)
class Naming:
    """What the vocabulary and the subjects decide about identifiers, without any registry."""

    ids: Sequence[str]
    """Of all subjects, in the manifest's order."""
    given: Mapping[str, str]
    """Identifiers that the user chose, by subject id."""
    rare: Sequence[str]
    """All tokens of the base that may name a subject."""
    texts: Sequence[str]
    """Class nouns, prompts and captions: no new identifier is a word of one of them."""
    drawn: Mapping[str, str] = field(default_factory=dict)
    """Identifiers as they would be if nothing were published yet, by subject id."""
    is_measured: bool = False
    """Whether new identifiers are measured: small vocabularies hold no names and brands."""
    was_candidate: Callable[[str], bool] = lambda _: False
    """Whether an earlier version would have drawn a word."""

    @property
    def candidates(self) -> list[str]:
        """The rare tokens for new identifiers."""
        return identifiers.unused(self.rare, self.texts)

    @cached_property
    def all_rare(self) -> frozenset[str]:
        """The rare tokens, to look one up."""
        return frozenset(self.rare)

    def without(self, ids: Collection[str]) -> Naming:
        """The same without some subjects."""
        given = {name: one for name, one in self.given.items() if name not in ids}
        return replace(self, ids=[name for name in self.ids if name not in ids], given=given)


@dataclass(frozen=True, slots=True)
class Latest:
    """What a plan needs of a model's latest record: 100,000 whole records fill gigabytes."""

    revision: str
    tenant: str | None
    identifier: str
    base_digest: str

    @classmethod
    def of(cls, record: ModelRecord) -> Latest:
        """Keep what is needed of a record."""
        return cls(record.revision, record.tenant, record.identifier, record.base_digest)


def read_latest(registry: Registry) -> dict[str, Latest]:
    """Read the latest record of every published model, by id."""
    return {record.id: Latest.of(record) for record in registry.list()}


def check_names(
    job: Job, base: Base, subjects: Sequence[Subject]
) -> tuple[Naming | None, list[Problem]]:
    """Check the identifiers that a job gives or asks for; reads no registry.

    Returns:
        What `name_subjects` needs, or None if that is not known; and the problems.
    """
    problems: list[Problem] = []
    try:
        tokenizer = identifiers.as_read(load_tokenizer(base), base.family.reads_case)
        texts = _texts_in_use(job, subjects)
        problems += [*check_nouns(tokenizer, subjects), *check_known(base, subjects)]
        given, findings = _given(job, tokenizer, subjects, texts)
        problems += findings + _shared_names(given, ())
        chosen = job.identifiers.rank_range
        rare = identifiers.candidates(tokenizer, chosen, ())
        naming = Naming([one.id for one in subjects], given, rare, texts,
                        is_measured=identifiers.is_large(tokenizer))  # fmt: skip
        if chosen is None and naming.is_measured:
            earlier = cache(partial(identifiers.was_candidate, tokenizer))
            naming = replace(naming, was_candidate=earlier)
        naming = replace(naming, drawn=_draw_names(job, naming, {}, set()))
    except SpecError as exc:
        return None, [*problems, *exc.problems]
    except BaseError as exc:
        return None, [*problems, Problem("error", "base", str(exc), "repair it, or change 'base'")]
    return naming, problems


def name_subjects(
    job: Job,
    base: Base,
    naming: Naming,
    published: Mapping[str, Latest],
    strong: Collection[str] = (),
) -> tuple[dict[str, str], list[Problem]]:
    """Give every subject an identifier, given the published models by id.

    New identifiers have no word that is `strong`, as measured. One that is published stays.

    Returns:
        Identifiers by subject id, and warnings.

    Raises:
        SpecError: a subject has the id of another tenant's model, or the vocabulary has too few
            identifiers.
    """
    ids = set(naming.ids)
    _check_tenants(job, {name: published[name] for name in published.keys() & ids})
    own = {
        subject_id: published[subject_id].identifier
        for subject_id in published.keys() & ids - naming.given.keys()
        if _may_stay(published[subject_id], base, naming, job.identifiers.num_tokens)
    }
    taken = {one.identifier for name, one in published.items() if name not in ids}
    warnings = _shared_names({**naming.given, **own}, taken)
    return _draw_names(job, naming, own, taken, strong), warnings


def _check_tenants(job: Job, published: Mapping[str, Latest]) -> None:
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
    """The identifiers that the user chose, and warnings about them.

    Raises:
        SpecError: an identifier consists of spaces.
    """
    given = {one.id: one.identifier for one in subjects if one.identifier}
    blank = [subject_id for subject_id, identifier in given.items() if not identifier.strip()]
    _refuse(blank, "its identifier consists of spaces", _LEAVE_OUT)
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
    naming: Naming,
    own: dict[str, str],
    taken: set[str],
    strong: Collection[str] = (),
) -> dict[str, str]:
    """Draw with as many tokens as the job says, else with the fewest that suffice for all of it.

    That number does not depend on how many subjects have their `own` already: when a job is
    continued, the remaining subjects keep the names that they had.
    """
    candidates, given, ids = naming.candidates, naming.given, naming.ids
    wanted, used = len(set(ids) - given.keys()), {*given.values(), *taken}
    num_tokens = job.identifiers.num_tokens or identifiers.fewest_tokens(
        candidates, wanted, used, strong
    )
    fixed, seed = {**given, **own}, job.identifiers.seed
    return identifiers.assign(candidates, ids, fixed, taken, seed, num_tokens, strong)


def _may_stay(model: Latest, base: Base, naming: Naming, num_tokens: int | None) -> bool:
    """Whether a published model's identifier is one that is drawn for this base, or once was."""
    words = model.identifier.split()
    return (
        model.base_digest == base.digest
        and all(word in naming.all_rare or naming.was_candidate(word) for word in words)
        and num_tokens in (None, len(words))
    )


def _shared_names(names: Mapping[str, str], taken: Iterable[str]) -> list[Problem]:
    """Warn of identifiers that two subjects share: a prompt cannot say which one it means."""
    holders = {identifiers.normal_form(one): "a published model" for one in taken}
    problems = []
    for subject_id, name in names.items():
        form = identifiers.normal_form(name)
        if form in holders:
            problems.append(Problem("warning", f"subject {subject_id}",
                                    f"its identifier {name!r} is also that of {holders[form]}",
                                    "give each subject its own", subject_id))  # fmt: skip
        holders[form] = f"subject {subject_id}"
    return problems


def _texts_in_use(job: Job, subjects: Sequence[Subject]) -> list[str]:
    """Class nouns, prompts and captions of a job, without placeholders."""
    texts = {job.prior.prompt, job.recipe.prompt, *job.previews.prompts}
    texts |= {*job.scoring.prompts, *job.scoring.class_prompts}
    for subject in subjects:
        texts |= {subject.class_noun, *(subject.captions or ())}
    return [fill_prompt(text, "", "") for text in sorted(texts)]
