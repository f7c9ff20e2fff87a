"""Class images: the only writer of PriorSets.

Samples "a [class noun]" from the frozen base, on Ray Data, only where images are missing. The
actors write whole parts atomically, and always the same parts, so a kill at any moment only loses
the parts being made. Two jobs may make one set at the same time: the first file of each part stays,
because other hardware may give other bits. Batches are never filled across nouns: the shape of a
batch decides the last bits of its images, which must not depend on the other nouns of a job. Does
not know subjects or training.

Source: Ruiz et al. 2022 (arXiv 2208.12242), section 3.3, class-specific prior preservation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from dbray import metrics
from dbray.bases import Base
from dbray.bases.generate import Sampling, enlarge, generate_in_batches
from dbray.records.prior_reuse import copy_part, full_parts_elsewhere
from dbray.records.prior_sets import (
    DESCRIPTION,
    Enlarging,
    PriorPlan,
    broken_files,
    describe,
    encode_part,
    has_part,
    load_part,
    missing_parts,
    part_name,
)
from dbray.sampling.pool import SamplingActor, SamplingPool, sample
from dbray.spec.sections import Prior
from dbray.storage.store import COMMITTED, Store
from dbray.subjects.images import encode_png
from dbray.training.losses import seed_of

OnProgress = Callable[[int, int], None]
IsEnough = Callable[[int, int], bool]

_CHECKS_AT_ONCE = 8
_MAX_TRIES = 3
_VERSIONED = ("dbray", "torch", "diffusers", "transformers")


@dataclass(frozen=True)
class PriorReport:
    """How many class images were made, and how fast. `digests` names the sets that are complete."""

    num_images: int = 0
    seconds: float = 0.0
    digests: tuple[str, ...] = ()

    def __add__(self, other: PriorReport) -> PriorReport:
        return PriorReport(
            self.num_images + other.num_images,
            self.seconds + other.seconds,
            self.digests + other.digests,
        )

    @property
    def images_per_second(self) -> float:
        """Rate of sampling, including the start of the actors; 0 if nothing was made."""
        return self.num_images / self.seconds if self.num_images else 0.0


class PartActor(SamplingActor):
    """Samples one part of a PriorSet at a time, and writes it."""

    def __init__(self, base: Base, threads: int, store: Store) -> None:
        super().__init__(base, threads)
        self._store = store

    def make(self, task: dict[str, Any]) -> dict[str, bytes]:
        """Sample a part and write it, unless another job was faster."""
        prior, part = Prior.model_validate(task["prior"]), task["part"]
        enlarging = Enlarging(**task["enlarging"]) if task["enlarging"] else None
        plan = PriorPlan(task["base_digest"], task["class_noun"], prior, enlarging)
        if has_part(self._store, plan, part):
            return {}
        data = self._sample(plan, part)
        # Check again: sampling takes long, and another job may have published the set since.
        if not has_part(self._store, plan, part):
            self._store.write_bytes(f"{plan.folder}/{part_name(part)}", data)
        metrics.prior_images().inc(len(plan.indices(part)))
        return {}

    def _sample(self, plan: PriorPlan, part: int) -> bytes:
        """Make the file of a part. The images depend on its number, not on the actor."""
        prior, indices = plan.prior, plan.indices(part)
        seeds = [seed_of(prior.seed, plan.class_noun, index) for index in indices]
        prompts = [plan.prompt] * len(indices)
        if plan.enlarging is None:
            images = generate_in_batches(self.backbone(), prompts, seeds, Sampling.of(prior))
        else:
            made = load_part(self._store, plan.source, part)
            sampling = _sampling_of(plan.enlarging)
            images = enlarge(self.backbone(), prompts, made, seeds, sampling)
        return encode_part(indices, seeds, [encode_png(image) for image in images])


def task_of(plan: PriorPlan, part: int) -> dict[str, Any]:
    """Return the task of a PartActor that makes a part."""
    return {"base_digest": plan.base_digest, "class_noun": plan.class_noun,
            "prior": plan.prior.model_dump(mode="json"), "part": part,
            "enlarging": plan.enlarging and asdict(plan.enlarging)}  # fmt: skip


def _sampling_of(enlarging: Enlarging) -> Sampling:
    steps, guidance = enlarging.steps, enlarging.guidance
    return Sampling(enlarging.sampler, steps, guidance, noise_level=enlarging.noise_level)


def make_priors(
    store: Store,
    base: Base,
    plans: Sequence[PriorPlan],
    pool: SamplingPool | None = None,
    on_progress: OnProgress | None = None,
    is_enough: IsEnough | None = None,
) -> PriorReport:
    """Make sure that every PriorSet, or as many as are enough, is published and undamaged.

    Finished sets are kept, interrupted ones are continued, and damaged parts are made again. Where
    the count of images was raised, only the new images are sampled.

    Args:
        store: where the sets are kept.
        base: what makes the images of every plan. The sets whose images it enlarges are finished.
        plans: the sets, the first ones first; two equal plans are one set.
        pool: the sampling actors.
        on_progress: called with the number of images made and the number to make, at the start
            and after every part.
        is_enough: called with the same numbers after every set; True ends the sampling there. What
            another set lacks is left to a later call, with the part that each actor has begun.

    Raises:
        StoreError: storage cannot be written.
        BaseError: the base cannot be loaded.
        LaneLost: the actors keep dying. Finished parts are kept for the next run.
    """
    started = time.monotonic()
    unique = {plan.digest: plan for plan in plans}
    if any(plan.sampled_by != base.digest for plan in unique.values()):
        raise ValueError(f"a plan is for a base other than {base.name!r}")
    with ThreadPoolExecutor(_CHECKS_AT_ONCE) as threads:
        missing = list(threads.map(lambda plan: _open(store, plan), unique.values()))
    open_sets = {plan: parts for plan, parts in zip(unique.values(), missing, strict=True)
                 if parts is not None}  # fmt: skip
    open_sets = _without_copied(store, open_sets)
    ledger = _Ledger(store, base, open_sets, on_progress or (lambda _done, _total: None))
    _make_parts(ledger, base, pool or SamplingPool(), is_enough or (lambda _done, _total: False))
    complete = tuple(digest for digest, plan in unique.items() if ledger.is_complete(plan))
    return PriorReport(ledger.num_done, time.monotonic() - started, complete)


def _open(store: Store, plan: PriorPlan) -> list[int] | None:
    """Prepare a set and return the numbers of its missing parts; None if it is finished."""
    broken = broken_files(store, plan)
    if broken is None:
        return missing_parts(store, plan)
    if not broken:
        return None
    # The marker would not match the new parts, so the set must not look finished until then.
    store.remove(f"{plan.folder}/{COMMITTED}")
    return [part for part in range(plan.num_parts) if part_name(part) in broken]


def _without_copied(
    store: Store, open_sets: dict[PriorPlan, list[int]]
) -> dict[PriorPlan, list[int]]:
    """Copy parts from other sets; return the parts that are left to sample."""
    elsewhere = full_parts_elsewhere(store, list(open_sets))

    def is_left(plan: PriorPlan, part: int) -> bool:
        folder = elsewhere[plan].get(part)
        return folder is None or not copy_part(store, plan, part, folder)

    return {
        plan: [part for part in parts if is_left(plan, part)] for plan, parts in open_sets.items()
    }


def _make_parts(ledger: _Ledger, base: Base, pool: SamplingPool, is_enough: IsEnough) -> None:
    """Sample the missing parts in one run, set after set, until all or enough sets are complete.

    Parts that failed with a retryable error, such as a short outage of storage, are retried.
    """
    work = ledger.missing
    for tries_left in reversed(range(_MAX_TRIES)):
        failed: list[tuple[PriorPlan, int]] = []
        tasks = [task_of(plan, part) for plan, part in work]
        actor_args = (base, pool.threads, ledger.store)
        with closing(sample(PartActor, actor_args, tasks, pool)) as results:
            for result in results:
                plan, part = work[result.index]
                if result.error is None:
                    ledger.finish(plan, part)
                    if ledger.is_complete(plan) and is_enough(ledger.num_done, ledger.num_images):
                        return
                elif result.error.retryable and tries_left:
                    failed.append((plan, part))
                else:
                    raise result.error
        work = failed


class _Ledger:
    """Counts finished parts, and publishes each set after its last part."""

    def __init__(
        self,
        store: Store,
        base: Base,
        open_sets: dict[PriorPlan, list[int]],
        on_progress: OnProgress,
    ) -> None:
        self.store, self.num_done = store, 0
        self.missing = [(plan, part) for plan, parts in open_sets.items() for part in parts]
        self.num_images = sum(len(plan.indices(part)) for plan, part in self.missing)
        self._base, self._on_progress = base, on_progress
        self._waiting = {plan: len(parts) for plan, parts in open_sets.items() if parts}
        for plan in open_sets.keys() - self._waiting.keys():
            _publish(store, base, plan)
        on_progress(0, self.num_images)

    def finish(self, plan: PriorPlan, part: int) -> None:
        """Count a part as made."""
        self.num_done += len(plan.indices(part))
        self._waiting[plan] -= 1
        if self._waiting[plan] == 0:
            del self._waiting[plan]
            _publish(self.store, self._base, plan)
        self._on_progress(self.num_done, self.num_images)

    def is_complete(self, plan: PriorPlan) -> bool:
        """Whether no part of a set is missing."""
        return plan not in self._waiting


def _publish(store: Store, base: Base, plan: PriorPlan) -> None:
    """Write the description of a set, then its marker."""
    versions = {name: metadata.version(name) for name in _VERSIONED}
    store.write_json(f"{plan.folder}/{DESCRIPTION}", describe(plan, base.name, versions))
    store.seal(plan.folder, plan.files)
