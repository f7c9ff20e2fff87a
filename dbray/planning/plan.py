"""Job -> Plan: what remains to be done, resolved to the last value, and what it costs.

Decides identifiers, fingerprints, which subjects are published already, which PriorSets are
missing, and how many lanes fit. Carries nothing out and knows no Ray.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from dbray.bases import Base
from dbray.errors import Problem, StoreError
from dbray.hardware import Hardware
from dbray.method.engine import memory_plan
from dbray.method.methods import method_of
from dbray.planning.checks import Ready
from dbray.planning.names import name_subjects
from dbray.records.models import REVISION_LENGTH, Registry
from dbray.records.prior_sets import PriorPlan, is_made
from dbray.records.results import Outcome, Rates, read_outcomes, summaries
from dbray.spec.canon import digest_json
from dbray.spec.job import Job
from dbray.spec.sections import Resources
from dbray.spec.subject import Subject
from dbray.storage.store import Store
from dbray.subjects.validation import CheckedSubject

_LOOKUPS_AT_ONCE = 16
_PACE = {
    "recipe": ("batch_size", "resolution", "precision", "prior_weight", "train_text_encoder",
               "gradient_checkpointing"),
    "prior": ("sampler", "steps", "guidance"),
    "resources": ("device", "gpus_per_subject", "threads_per_worker", "zero_stage"),
}  # fmt: skip
_BEFORE = {"device": "auto"}
"""What jobs meant that were written before there was such a key."""
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
    """Ids of those that are there already."""
    failed: Mapping[str, Outcome]
    """By id, how those ended before that would only fail again."""
    missing_priors: tuple[PriorPlan, ...]
    warnings: tuple[Problem, ...]
    """All there is to say against the job, which runs nevertheless."""

    @cached_property
    def to_train(self) -> tuple[PlannedSubject, ...]:
        """The subjects that are not published yet, and may be."""
        over = self.published | self.failed.keys()
        return tuple(one for one in self.subjects if one.subject.id not in over)

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
        """Class images to make, at most (parts of an interrupted set are kept)."""
        return len(self.missing_priors) * self.job.prior.count


@dataclass(frozen=True)
class Cost:
    """What carrying out a Plan takes. Times are None where no earlier job tells the rates.

    `storage_bytes` are of what is published, by kind, images as large as if PNG did not compress
    them; checkpoints of subjects in flight come on top. `warnings` are of hardware that holds no
    lane.
    """

    lanes: int
    prior_actors: int
    train_steps: int
    storage_bytes: dict[str, int]
    memory_bytes: dict[str, int]
    train_seconds: float | None
    prior_seconds: float | None
    warnings: tuple[Problem, ...] = ()


def make_plan(ready: Ready, store: Store, retry_failed: bool = False) -> Plan:
    """Resolve a job against what its storage holds.

    Args:
        ready: the job, its base, and its subjects in the manifest's order.
        store: the job's storage.
        retry_failed: whether subjects are tried again whose error would only repeat itself.

    Raises:
        SpecError: when the vocabulary has no identifier left for every subject.
    """
    job, base, subjects = ready.job, ready.base, ready.subjects
    registry = Registry(store)
    names, findings = name_subjects(job, base, [checked.subject for checked in subjects], registry)
    # Those who checked the job have looked at the identifiers too, and may have said the same.
    warnings = tuple(dict.fromkeys((*ready.warnings, *findings)))
    priors: dict[str, PriorPlan] = {}
    if job.recipe.prior_weight > 0:
        for noun in {checked.subject.class_noun for checked in subjects}:
            priors[noun] = PriorPlan(base_digest=base.digest, class_noun=noun, prior=job.prior)
    planned = tuple(
        _plan_subject(job, base, checked, names[checked.subject.id], priors) for checked in subjects
    )
    with ThreadPoolExecutor(_LOOKUPS_AT_ONCE) as threads:
        found = threads.map(lambda one: registry.has_record(one.subject.id, one.revision), planned)
        published = frozenset(
            one.subject.id for one, there in zip(planned, found, strict=True) if there
        )
        failed = {} if retry_failed else _failed_before(planned, published, store, job.id)
        plan = Plan(job, base, planned, published, failed, (), warnings)
        needed = [priors[noun] for noun in plan.class_nouns if noun in priors]
        made = threads.map(lambda prior: is_made(store, prior), needed)
        missing = tuple(prior for prior, there in zip(needed, made, strict=True) if not there)
    return replace(plan, missing_priors=missing)


def _failed_before(
    planned: Sequence[PlannedSubject], published: Collection[str], store: Store, job_id: str
) -> dict[str, Outcome]:
    """How those ended, by id, that would only fail again."""
    before = read_outcomes(store, job_id)
    revisions = {one.subject.id: one.revision for one in planned}
    return {
        name: before[name]
        for name, revision in revisions.items()
        if name in before and name not in published and before[name].would_repeat(revision)
    }


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
            "recipe": job.recipe.identity(),
            "prior": prior.digest if prior else None,
        }
    )
    return PlannedSubject(
        subject, identifier, checked.image_digests, fingerprint, prior.digest if prior else None
    )


def estimate(plan: Plan, hardware: Hardware, rates: Rates | None) -> Cost:
    """Say what a plan takes.

    Args:
        plan: what remains.
        hardware: what the cluster holds.
        rates: of an earlier job on the same base; None where there was no such job.
    """
    resources, recipe = plan.job.resources, plan.job.recipe
    lanes = num_lanes(plan, hardware)
    method = method_of(recipe.method)
    num_parameters = method.num_trained(plan.base, recipe)
    image_bytes = 3 * plan.base.resolution**2
    preview_bytes = 3 * (recipe.resolution or plan.base.resolution) ** 2
    num_previews = 2 * len(plan.job.previews.prompts)  # the subject's, and the base's beside them
    steps = len(plan.to_train) * recipe.steps
    fits = lanes > 0 or not plan.to_train
    train_seconds = prior_seconds = None
    if rates and fits:
        per_subject = rates.overhead_seconds + recipe.steps * rates.step_seconds
        train_seconds = -(-len(plan.to_train) // max(lanes, 1)) * per_subject
        # A job that found all its class images made tells no rate of making them.
        if not plan.num_prior_images:
            prior_seconds = 0.0
        elif rates.prior_images_per_second:
            prior_seconds = plan.num_prior_images / rates.prior_images_per_second
    return Cost(
        lanes=lanes,
        prior_actors=num_prior_actors(plan, hardware),
        train_steps=steps,
        storage_bytes={
            "weights": len(plan.to_train) * method.published_bytes(plan.base, recipe),
            "class images": plan.num_prior_images * image_bytes,
            "previews": len(plan.to_train) * num_previews * preview_bytes,
        },
        memory_bytes=memory_plan(
            num_parameters, recipe, resources.zero_stage, resources.gpus_per_subject
        ),
        train_seconds=train_seconds,
        prior_seconds=prior_seconds,
        warnings=() if fits else (replace(too_small(resources, hardware), severity="warning"),),
    )


def num_lanes(plan: Plan, hardware: Hardware) -> int:
    """Lanes that the cluster holds, at most one per subject; 0 where it does not hold any.

    A number that the user gives stands: a cluster may grow when it is asked to.
    """
    resources = plan.job.resources
    room = hardware.num_cpus // (resources.gpus_per_subject * resources.threads_per_worker)
    if hardware.uses_gpus(resources.device):
        room = min(room, hardware.num_gpus // resources.gpus_per_subject)
    return min(resources.lanes or room, len(plan.to_train))


def too_small(resources: Resources, hardware: Hardware) -> Problem:
    """What to tell of a cluster that does not hold a single lane."""
    gpu = "1 GPU and " if hardware.uses_gpus(resources.device) else ""
    worker = f"{gpu}{resources.threads_per_worker} CPU(s)"
    needed = f"{resources.gpus_per_subject} worker(s) with {worker}"
    holds = f"{hardware.num_gpus} GPU(s) and {hardware.num_cpus} CPU(s)"
    return Problem(
        "error", "resources", f"a lane needs {needed} each; the cluster holds {holds}",
        "lower gpus_per_subject or threads_per_worker, or change device; if the cluster grows, set "
        "lanes, and device: cuda to wait for GPUs",
    )  # fmt: skip


def num_prior_actors(plan: Plan, hardware: Hardware) -> int:
    """Sampling actors that the cluster holds."""
    resources = plan.job.resources
    on_gpus = hardware.uses_gpus(resources.device)
    room = hardware.num_gpus if on_gpus else hardware.num_cpus // resources.threads_per_worker
    return max(resources.prior_actors or room, 1)


def latest_rates(store: Store, base_digest: str, like: Job) -> Rates | None:
    """Rates of the last job on this base in this storage; None where there was none.

    Args:
        store: where the jobs are.
        base_digest: of the base.
        like: the resolved job that they are for; others do not count whose steps take another time.
    """
    told = [
        (found.updated_at, job_id, found.rates)
        for job_id, found in summaries(store)
        if found.rates and found.base_digest == base_digest
    ]
    for _, job_id, rates in sorted(told, key=lambda one: one[:2], reverse=True):
        if _keeps_pace(store, job_id, like):
            return rates
    return None


def _keeps_pace(store: Store, job_id: str, job: Job) -> bool:
    """Whether the steps and class images of an earlier job took as long as this job's will."""
    try:
        earlier = _pace_of(store.read_json(f"jobs/{job_id}/job.json")["job"])
    except (StoreError, LookupError, TypeError):
        return False  # rates of what nobody knows are no rates
    return earlier == _pace_of(job.model_dump(mode="json", include=set(_PACE)))


def _pace_of(job: Mapping[str, Any]) -> list[Any]:
    """What decides how long a step and a class image take; of a job as job.json holds it."""
    return [(_BEFORE | job[section])[name] for section, names in _PACE.items() for name in names]
