"""Job -> Plan: what remains to be done, resolved to the last value.

Decides fingerprints, which subjects are published already and which PriorSets are missing.
Runs nothing and does not use Ray.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from dbray.bases import Base
from dbray.errors import Problem
from dbray.planning.cascade import trained_stages
from dbray.planning.checked import InvalidSubject, Ready
from dbray.planning.ids import origin
from dbray.planning.names import Latest, name_subjects, read_latest
from dbray.planning.stop import StopMeasure, stop_measure_of
from dbray.records.models import REVISION_LENGTH, Registry
from dbray.records.prior_reuse import full_parts_elsewhere
from dbray.records.prior_sets import IMAGES_PER_PART, Enlarging, PriorPlan, is_made
from dbray.records.results import Outcome, read_outcomes
from dbray.records.strengths import Strengths, read_strengths
from dbray.spec.canon import digest_json
from dbray.spec.job import Job
from dbray.spec.prompts import NO_NOUN, has_an
from dbray.spec.recipe import Recipe
from dbray.spec.subject import Subject
from dbray.spec.super_resolution import SuperResolution
from dbray.storage.store import Store
from dbray.subjects.validation import CheckedSubject

Priors = Mapping[str, PriorPlan]
"""Class images by class noun."""

_LOOKUPS_AT_ONCE = 16
WEIGHTS_VERSION = 1
"""Raised when a change of dbray makes the same inputs give other weights."""


@dataclass(frozen=True)
class PlannedSubject:
    """One subject, resolved: all that a lane needs to train and publish it."""

    subject: Subject
    identifier: str
    image_digests: tuple[str, ...]
    fingerprint: str
    prior_digest: str | None
    strength: float | None = None
    """Of the base's prior for the identifier, where it is measured; see records.strengths."""
    is_taught: bool = False
    """Whether the untouched base is its teacher, in the place of class images."""
    enlarged_digest: str | None = None
    """The class images of the second stage of a cascade."""
    low_digest: str | None = None
    """The class images that those were enlarged from."""

    @property
    def revision(self) -> str:
        """The revision it will be published as: equal inputs share it."""
        return self.fingerprint[:REVISION_LENGTH]


@dataclass(frozen=True)
class Plan:
    """What remains to be done for a Job."""

    job: Job
    base: Base
    subjects: tuple[PlannedSubject, ...]
    """All of them, in the manifest's order."""
    published: frozenset[str]
    """Ids of those that are published already."""
    failed: Mapping[str, Outcome]
    """Outcomes, by id, of subjects that failed before and would fail again."""
    missing_priors: tuple[PriorPlan, ...]
    warnings: tuple[Problem, ...]
    """What is doubtful about the job; it runs nevertheless."""
    measure: StopMeasure | None = None
    """What measures fidelity, where the recipe stops early; it is part of the fingerprints."""
    invalid: tuple[InvalidSubject, ...] = ()
    """Subjects that are skipped because they have errors."""
    file: str | None = None
    """Path of the job file, where it identifies the job."""
    num_copied_images: int = 0
    """Class images that are copied from sets with another count."""
    unmeasured: tuple[str, ...] = ()
    """Words of identifiers for which the base's prior is not known yet."""

    @cached_property
    def to_train(self) -> tuple[PlannedSubject, ...]:
        """The subjects that are neither published nor would fail again."""
        left_out = self.published | self.failed.keys()
        return tuple(one for one in self.subjects if one.subject.id not in left_out)

    @cached_property
    def kept(self) -> tuple[PlannedSubject, ...]:
        """The subjects that are published already."""
        return tuple(one for one in self.subjects if one.subject.id in self.published)

    @cached_property
    def class_nouns(self) -> tuple[str, ...]:
        """Class nouns of the subjects to train, sorted."""
        return tuple(sorted({planned.subject.class_noun for planned in self.to_train}))

    @property
    def num_prior_images(self) -> int:
        """Class images to sample, at most (parts of an interrupted set are kept)."""
        return len(self.missing_priors) * self.job.prior.count - self.num_copied_images


def make_plan(ready: Ready, store: Store, retry_failed: bool = False) -> Plan:
    """Resolve a job against what its storage holds.

    Args:
        ready: the job, its base, and its subjects in the manifest's order.
        store: the job's storage.
        retry_failed: whether to try again subjects whose error would repeat itself.

    Raises:
        SpecError: the vocabulary has too few identifiers, or a subject has the id of another
            tenant's model.
    """
    job, base, subjects = ready.job, ready.base, ready.subjects
    registry = Registry(store)
    latest = read_latest(registry)
    known = read_strengths(store, base.digest) if ready.naming.is_measured else None
    strong = known.strong if known else ()
    names, findings = name_subjects(job, base, ready.naming, latest, strong)
    # The checks of the job looked at the identifiers too, and may have found the same.
    warnings = tuple(dict.fromkeys((*ready.warnings, *findings)))
    priors = [
        _priors(job, base, one, {checked.subject.class_noun for checked in subjects})
        for one in trained_stages(job, base)
    ]
    measure = stop_measure_of(job, base)
    planned = tuple(
        _plan_subject(job, base, checked, names[checked.subject.id], priors, measure)
        for checked in subjects
    )
    if known is not None:
        planned = tuple(replace(one, strength=known.of(one.identifier)) for one in planned)
    with ThreadPoolExecutor(_LOOKUPS_AT_ONCE) as threads:
        found = threads.map(lambda one: _is_published(one, latest, registry), planned)
        published = frozenset(
            one.subject.id for one, there in zip(planned, found, strict=True) if there
        )
        failed = {} if retry_failed else _failed_before(planned, published, store, job.id)
        plan = Plan(job, base, planned, published, failed, (), warnings, measure,
                    tuple(ready.invalid), origin(ready.file))  # fmt: skip
        needed = _needed(plan, priors) if job.prior.makes_images else []
        made = threads.map(lambda prior: is_made(store, prior), needed)
        missing = tuple(prior for prior, there in zip(needed, made, strict=True) if not there)
    elsewhere = full_parts_elsewhere(store, missing)
    num_copied = IMAGES_PER_PART * sum(len(parts) for parts in elsewhere.values())
    unmeasured = _unmeasured(plan, known) if ready.naming.is_measured else ()
    return replace(plan, missing_priors=missing, num_copied_images=num_copied,
                   unmeasured=unmeasured)  # fmt: skip


def _priors(
    job: Job,
    base: Base,
    stage: tuple[Base, Recipe, SuperResolution | None],
    class_nouns: Collection[str],
) -> Priors:
    """Return the class images by which a stage is kept, by class noun."""
    own, recipe, section = stage
    enlarging = None if section is None else Enlarging.of(own.digest, section)
    if not recipe.prior_weight > 0:
        return {}
    return {
        noun: PriorPlan(base.digest, noun, job.prior, enlarging)
        for noun in set(class_nouns) - {NO_NOUN}
    }


def _needed(plan: Plan, priors: Sequence[Priors]) -> list[PriorPlan]:
    """Return the sets of the subjects to train; before one that is enlarged, its source."""
    known = [of_stage[noun] for of_stage in priors for noun in plan.class_nouns if noun in of_stage]
    return list(dict.fromkeys(one for each in known for one in (each.source, each)))


def _unmeasured(plan: Plan, known: Strengths | None) -> tuple[str, ...]:
    """Words of the identifiers that dbray chose for subjects to train, and has not measured."""
    chosen = (one.identifier for one in plan.to_train if not one.subject.identifier)
    words = tuple(dict.fromkeys(word for identifier in chosen for word in identifier.split()))
    return tuple(known.unknown(words)) if known else words


def _is_published(
    planned: PlannedSubject, latest: Mapping[str, Latest], registry: Registry
) -> bool:
    """Whether a subject is published as planned; the latest records have just been read."""
    subject_id, revision = planned.subject.id, planned.revision
    known = latest.get(subject_id)
    if known is not None and known.revision == revision:
        return True
    return registry.has_record(subject_id, revision)


def _failed_before(
    planned: Sequence[PlannedSubject], published: Collection[str], store: Store, job_id: str
) -> dict[str, Outcome]:
    """Outcomes, by id, of subjects that would fail again."""
    before = read_outcomes(store, job_id)
    revisions = {one.subject.id: one.revision for one in planned}
    return {
        name: before[name]
        for name, revision in revisions.items()
        if name in before and name not in published and before[name].would_repeat(revision)
    }


def _has_an(subject: Subject) -> bool:
    return any(has_an(caption, subject.class_noun) for caption in subject.captions or ())


def _plan_subject(
    job: Job,
    base: Base,
    checked: CheckedSubject,
    identifier: str,
    priors: Sequence[Priors],
    measure: StopMeasure | None,
) -> PlannedSubject:
    subject = checked.subject
    prior, enlarged = (one.get(subject.class_noun) for one in (*priors, {})[:2])
    cascade = _cascade_identity(job, base, enlarged)
    # The second law: nothing but this decides a subject's weights.
    fingerprint = digest_json(
        {
            "version": WEIGHTS_VERSION,
            "base": base.digest,
            "subject": subject.id,
            "images": checked.image_digests,
            "class_noun": subject.class_noun,
            "captions": subject.captions,
            "identifier": identifier,
            "recipe": job.recipe.identity(),
            "prior": prior.digest if prior else None,
            **({"decodings": checked.decodings} if checked.decodings else {}),
            **({"article": "an"} if _has_an(subject) else {}),
            **({"stop": measure.identity()} if measure else {}),
            **({"super_resolution": cascade} if cascade else {}),
        }
    )
    prior_digest = prior.digest if prior and prior.prior.makes_images else None
    is_taught = prior is not None and not prior.prior.makes_images
    return PlannedSubject(
        subject, identifier, checked.image_digests, fingerprint, prior_digest, is_taught=is_taught,
        enlarged_digest=enlarged and enlarged.digest,
        low_digest=enlarged and enlarged.source.digest,
    )  # fmt: skip


def _cascade_identity(job: Job, base: Base, enlarged: PriorPlan | None) -> dict[str, Any] | None:
    """Return what of the second stage decides a model; None without one."""
    section, second = job.super_resolution, base.super_resolution
    if section is None or second is None:
        return None
    decides = {"base": second.digest, "scale": second.scale, "train": section.train,
               "noise_level": section.noise_level}  # fmt: skip
    if not section.train:
        return decides
    prior = enlarged.digest if enlarged else None
    return {**decides, "recipe": section.recipe.identity(), "prior": prior}
