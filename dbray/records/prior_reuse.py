"""Reuse of class images from another PriorSet that differs only in its count.

Image i is sampled from (seed, i), in one batch with the others of its part. So a full part is the
same, bit for bit, in all such sets; a last part that is not full was sampled in another batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from dbray.errors import DbrayError
from dbray.records.prior_sets import (
    DESCRIPTION,
    IMAGES_PER_PART,
    Enlarging,
    PriorPlan,
    part_name,
)
from dbray.spec.sections import Prior
from dbray.storage.committed import Committed
from dbray.storage.store import Store

_READ_AT_ONCE = 16


def full_parts_elsewhere(
    store: Store, plans: Sequence[PriorPlan]
) -> dict[PriorPlan, dict[int, str]]:
    """Find the full parts of some sets in other published sets: folders by part."""
    if not plans:
        return {}
    with ThreadPoolExecutor(_READ_AT_ONCE) as threads:
        read = threads.map(lambda name: _published(store, name), store.names("priors"))
        known = [plan for plan in read if plan is not None]
    families: dict[str, list[PriorPlan]] = defaultdict(list)
    for plan in known:
        families[_family(plan)].append(plan)
    return {plan: dict(_parts_of(plan, families[_family(plan)])) for plan in plans}


def copy_part(store: Store, plan: PriorPlan, part: int, folder: str) -> bool:
    """Copy a verified part from another set's folder; False if it is damaged or missing."""
    try:
        data = Committed(store, folder).read(part_name(part))
    except DbrayError:
        return False
    store.write_bytes(f"{plan.folder}/{part_name(part)}", data)
    return True


def _parts_of(plan: PriorPlan, family: Sequence[PriorPlan]) -> Iterator[tuple[int, str]]:
    for other in family:
        if other.digest != plan.digest:
            full = min(plan.prior.count, other.prior.count) // IMAGES_PER_PART
            yield from ((part, other.folder) for part in range(full))


def _family(plan: PriorPlan) -> str:
    """Return a key that is equal for sets which differ only in their count."""
    one = plan.prior.model_copy(update={"count": 1})
    return replace(plan, prior=one).digest


def _published(store: Store, name: str) -> PriorPlan | None:
    """Return the plan of a published set; None if it is unreadable or has another name."""
    folder = f"priors/{name}"
    try:
        if not store.is_committed(folder):
            return None
        found = store.read_json(f"{folder}/{DESCRIPTION}")
        enlarging = found.get("enlarging")
        plan = PriorPlan(
            found["base_digest"],
            found["class_noun"],
            Prior.model_validate(found["prior"]),
            Enlarging(**enlarging) if enlarging else None,
        )
    except (DbrayError, ValueError, LookupError, TypeError):
        return None
    return plan if plan.digest == name else None
