"""Job -> Plan: what remains to be done, resolved to the last value, and what it costs.

Decides identifiers, fingerprints, which subjects are published already, which PriorSets are
missing, and how many lanes fit. Carries nothing out and knows no Ray.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from dbray import identifiers
from dbray.backbones import Base, load_tokenizer
from dbray.engine import memory_plan
from dbray.errors import Problem, SpecError
from dbray.manifest import CheckedSubject
from dbray.priorset import PriorPlan, is_made
from dbray.registry import Registry
from dbray.spec import Job, Previews, Prior, Recipe, Spec, Subject, digest_json, fill_prompt
from dbray.store import Store

WEIGHTS_VERSION = 1
"""Raised when a change of dbray makes the same inputs give other weights."""
REVISION_LENGTH = 12


@dataclass(frozen=True)
class Hardware:
    """What the cluster holds."""

    num_cpus: int
    num_gpus: int

    @classmethod
    def local(cls) -> Hardware:
        """What this machine holds."""
        return cls(os.cpu_count() or 1, torch.cuda.device_count())


@dataclass(frozen=True)
class PlannedSubject:
    """One subject, resolved: all that a lane needs to train and publish it."""

    subject: Subject
    identifier: str
    image_digests: tuple[str, ...]
    fingerprint: str
    prior_digest: str | None

    @property
    def revision(self) -> str:
        """The revision it will be published as: equal inputs share it."""
        return self.fingerprint[:REVISION_LENGTH]


@dataclass(frozen=True)
class Plan:
    """What remains to be done for a Job."""

    job: Job
    base: Base
    to_train: tuple[PlannedSubject, ...]
    kept: tuple[PlannedSubject, ...]
    missing_priors: tuple[PriorPlan, ...]
    warnings: tuple[Problem, ...]

    @cached_property
    def class_nouns(self) -> tuple[str, ...]:
        """Class nouns of the subjects to train, sorted."""
        return tuple(sorted({planned.subject.class_noun for planned in self.to_train}))

    @property
    def num_prior_images(self) -> int:
        """Class images to make, at most (parts of an interrupted set are kept)."""
        return len(self.missing_priors) * self.job.prior.count


@dataclass(frozen=True)
class Cost:
    """What carrying out a Plan takes. Times are None where no earlier job tells the rates."""

    lanes: int
    prior_actors: int
    train_steps: int
    storage_bytes: int
    memory_bytes: dict[str, int]
    train_seconds: float | None
    prior_seconds: float | None


def resolve_job(job: Job, base: Base) -> Job:
    """Fill what the user left open with the recommendations of the base's makers."""
    sections: dict[str, Spec] = {}
    for name, model in (("recipe", Recipe), ("prior", Prior), ("previews", Previews)):
        section: Spec = getattr(job, name)
        recommended = dict(base.defaults.get(name, {}))
        chosen = section.model_dump(include=section.model_fields_set)
        sections[name] = model.model_validate(recommended | chosen)
    recipe = sections["recipe"]
    assert isinstance(recipe, Recipe)
    if recipe.resolution is None:
        sections["recipe"] = recipe.model_copy(update={"resolution": base.resolution})
    return job.model_copy(update=sections)


def make_plan(job: Job, base: Base, subjects: Sequence[CheckedSubject], store: Store) -> Plan:
    """Resolve a job against what its storage holds.

    Args:
        job: as the user wrote it.
        base: the resolved base.
        subjects: the validated subjects, in the manifest's order.
        store: the job's storage.

    Raises:
        SpecError: when the vocabulary has no identifier left for every subject.
    """
    job = resolve_job(job, base)
    registry = Registry(store)
    names, warnings = _name_subjects(job, base, subjects, registry)
    priors: dict[str, PriorPlan] = {}
    if job.recipe.prior_weight > 0:
        for noun in {checked.subject.class_noun for checked in subjects}:
            priors[noun] = PriorPlan(base_digest=base.digest, class_noun=noun, prior=job.prior)
    planned = [
        _plan_subject(job, base, checked, names[checked.subject.id], priors) for checked in subjects
    ]
    kept = [one for one in planned if registry.has(one.subject.id, one.revision)]
    kept_ids = {one.subject.id for one in kept}
    to_train = [one for one in planned if one.subject.id not in kept_ids]
    nouns = sorted({one.subject.class_noun for one in to_train} & priors.keys())
    missing = [priors[noun] for noun in nouns if not is_made(store, priors[noun])]
    return Plan(job, base, tuple(to_train), tuple(kept), tuple(missing), tuple(warnings))


def _plan_subject(
    job: Job, base: Base, checked: CheckedSubject, identifier: str, priors: dict[str, PriorPlan]
) -> PlannedSubject:
    subject = checked.subject
    prior = priors.get(subject.class_noun)
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
            "recipe": job.recipe.model_dump(mode="json"),
            "prior": prior.digest if prior else None,
        }
    )
    return PlannedSubject(
        subject, identifier, checked.image_digests, fingerprint, prior.digest if prior else None
    )


def _name_subjects(
    job: Job, base: Base, subjects: Sequence[CheckedSubject], registry: Registry
) -> tuple[dict[str, str], list[Problem]]:
    """Give every subject an identifier: the user's, the one it was published with, or a new one."""
    tokenizer = load_tokenizer(base)
    ids = [checked.subject.id for checked in subjects]
    in_use = words_in_use(job, [checked.subject for checked in subjects])
    given: dict[str, str] = {}
    warnings: list[Problem] = []
    for subject in (checked.subject for checked in subjects):
        if subject.identifier:
            given[subject.id] = subject.identifier
            warnings += [
                Problem("warning", f"subject {subject.id}", finding,
                        "leave the identifier out, and dbray finds a rare one", subject.id)
                for finding in identifiers.check_identifier(tokenizer, subject.identifier, in_use)
            ]  # fmt: skip
    published = {record.id: record.identifier for record in registry.list()}
    own = {subject_id: published[subject_id] for subject_id in ids
           if subject_id in published and subject_id not in given
           and _is_from(published[subject_id], job.identifiers.num_tokens)}  # fmt: skip
    taken = {name for subject_id, name in published.items() if subject_id not in set(ids)}
    warnings += _shared_names(given | own, taken)
    candidates = identifiers.candidates(tokenizer, job.identifiers.rank_range, in_use)
    names = _draw_names(job, candidates, ids, given | own, taken)
    return names, warnings


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


def _is_from(identifier: str, num_tokens: int | None) -> bool:
    """Whether a published identifier may be kept: it has as many tokens as are asked for."""
    return num_tokens is None or len(identifier.split()) == num_tokens


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


def words_in_use(job: Job, subjects: Sequence[Subject]) -> set[str]:
    """Words of class nouns, prompts and captions: no identifier may be one of them."""
    texts = [job.prior.prompt, *job.previews.prompts]
    for subject in subjects:
        texts += [subject.class_noun, *(subject.captions or ())]
    filled = (fill_prompt(text, "", "") for text in texts)
    return {word.strip(".,;:!?'\"").lower() for text in filled for word in text.split()}


def estimate(plan: Plan, hardware: Hardware, rates: dict[str, Any] | None) -> Cost:
    """Say what a plan takes.

    Args:
        plan: what remains.
        hardware: what the cluster holds.
        rates: of an earlier job on the same base: step_seconds, overhead_seconds (per subject) and
            prior_images_per_second, which may be None; None where there was no such job.
    """
    resources, recipe = plan.job.resources, plan.job.recipe
    lanes = num_lanes(plan, hardware)
    parts = ["unet", "text_encoder"] if recipe.train_text_encoder else ["unet"]
    num_parameters = sum(plan.base.num_parameters(part) for part in parts)
    bytes_each = num_parameters * (2 if recipe.publish_precision == "fp16" else 4)
    steps = len(plan.to_train) * recipe.steps
    train_seconds = prior_seconds = None
    if rates:
        per_subject = rates["overhead_seconds"] + recipe.steps * rates["step_seconds"]
        train_seconds = -(-len(plan.to_train) // max(lanes, 1)) * per_subject
        # A job that found all its class images made tells no rate of making them.
        if not plan.num_prior_images:
            prior_seconds = 0.0
        elif rates["prior_images_per_second"]:
            prior_seconds = plan.num_prior_images / rates["prior_images_per_second"]
    return Cost(
        lanes=lanes,
        prior_actors=num_prior_actors(plan, hardware),
        train_steps=steps,
        storage_bytes=len(plan.to_train) * bytes_each,
        memory_bytes=memory_plan(
            num_parameters, recipe, resources.zero_stage, resources.gpus_per_subject
        ),
        train_seconds=train_seconds,
        prior_seconds=prior_seconds,
    )


def num_lanes(plan: Plan, hardware: Hardware) -> int:
    """Lanes that the cluster holds, at most one per subject; at least one if there is any."""
    resources = plan.job.resources
    if hardware.num_gpus:
        room = hardware.num_gpus // resources.gpus_per_subject
    else:
        room = hardware.num_cpus // (resources.gpus_per_subject * resources.threads_per_worker)
    return min(max(resources.lanes or room, 1), len(plan.to_train))


def num_prior_actors(plan: Plan, hardware: Hardware) -> int:
    """Sampling actors that the cluster holds."""
    room = hardware.num_gpus or hardware.num_cpus // plan.job.resources.threads_per_worker
    return max(plan.job.resources.prior_actors or room, 1)


def latest_rates(store: Store, base_digest: str) -> dict[str, Any] | None:
    """Rates of the last finished job on this base in this storage; None where there was none."""
    best: dict[str, Any] | None = None
    for job_id in store.names("jobs"):
        path = f"jobs/{job_id}/summary.json"
        if store.exists(path):
            summary = store.read_json(path)
            if (
                summary.get("rates")
                and summary.get("base_digest") == base_digest
                and (best is None or summary["ended_at"] > best["ended_at"])
            ):
                best = summary
    return best["rates"] if best else None
