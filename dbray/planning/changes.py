"""Why a published subject would be trained again: the inputs that differ from its record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dbray.errors import DbrayError
from dbray.planning.plan import Plan, PlannedSubject
from dbray.records.models import ModelRecord, Registry

_LOOKUPS_AT_ONCE = 16


def changes(plan: Plan, registry: Registry) -> dict[str, tuple[str, ...]]:
    """What changed, such as 'recipe.steps 400 -> 600', by id of the subjects to train again."""
    published = set(registry.store.names("models"))
    again = [one for one in plan.to_train if one.subject.id in published]

    def differing(planned: PlannedSubject) -> tuple[str, ...]:
        try:
            return tuple(_differences(plan, planned, registry.find(planned.subject.id)))
        except DbrayError:  # nothing usable is published
            return ()

    with ThreadPoolExecutor(_LOOKUPS_AT_ONCE) as threads:
        found = zip(again, threads.map(differing, again), strict=True)
        return {planned.subject.id: differences for planned, differences in found if differences}


def renamed(plan: Plan, registry: Registry) -> dict[str, str]:
    """Published ids, by the new id, of subjects that seem to be renamed: same images and noun."""
    new = {one.image_digests: one.subject.id for one in plan.to_train}
    ours = {one.subject.id for one in plan.subjects}
    return {
        new[record.image_digests]: record.id
        for record in (registry.list() if new else ())
        if record.image_digests in new and record.id not in ours
    }


def _differences(plan: Plan, planned: PlannedSubject, record: ModelRecord) -> Iterator[str]:
    if record.fingerprint == planned.fingerprint:
        return
    if record.base_digest != plan.base.digest:
        yield f"base {record.base} -> {plan.base.name}"
    if tuple(record.image_digests) != planned.image_digests:
        yield "its photographs"
    if record.class_noun != planned.subject.class_noun:
        yield f"class_noun {record.class_noun} -> {planned.subject.class_noun}"
    if record.captions != planned.subject.captions:
        yield "its captions"
    if record.identifier != planned.identifier:
        yield f"identifier {record.identifier} -> {planned.identifier}"
    yield from _fields("recipe", record.recipe.identity(), plan.job.recipe.identity())
    if planned.prior_digest is not None and record.prior is not None:
        yield from _fields("prior", record.prior.identity(), plan.job.prior.identity())


def _fields(section: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name in {**old, **new}:
        if old.get(name) != new.get(name):
            yield f"{section}.{name} {old.get(name)} -> {new.get(name)}"
