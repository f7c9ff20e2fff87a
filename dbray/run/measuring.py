"""Measures identifiers before a run: a new one for which the base's prior is strong is replaced.

Not part of planning, which needs no model. What is measured is kept beside the models, so that
planning knows it from then on.
"""

from __future__ import annotations

from collections.abc import Sequence

from dbray.planning.plan import Plan
from dbray.records.strengths import read_strengths, write_strengths
from dbray.sampling.pool import SamplingPool
from dbray.sampling.strengths import measure_strengths
from dbray.storage.store import Store


def measure_identifiers(plan: Plan, rare: Sequence[str], store: Store) -> None:
    """Measure the words that a plan has not measured, and keep their strengths.

    Raises:
        BaseError: the base cannot be loaded.
        LaneLost: the actors that measure keep dying.
        StoreError: storage cannot be written.
    """
    digest = plan.base.digest
    known = read_strengths(store, digest)
    found = measure_strengths(
        plan.base, plan.unmeasured, rare, known, SamplingPool.of(plan.job.resources)
    )
    # What another job measured meanwhile was first, and stays.
    first = read_strengths(store, digest)
    if first is not None:
        found = first.model_copy(update={"words": {**found.words, **first.words}})
    write_strengths(store, digest, found)
