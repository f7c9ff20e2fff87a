"""Why a published subject would be trained again: the inputs that differ from its record."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dbray.errors import DbrayError, Problem
from dbray.planning.plan import Plan, PlannedSubject
from dbray.records.models import ModelRecord, Registry
from dbray.spec.canon import slug
from dbray.spec.super_resolution import SuperResolution

_LOOKUPS_AT_ONCE = 16
_OTHERWISE = ("how this version decodes its photographs or fills its prompts",)


def changes(plan: Plan, registry: Registry) -> dict[str, tuple[str, ...]]:
    """What changed, such as 'recipe.steps 400 -> 600', by id of the subjects to train again."""
    published = set(registry.store.names("models"))
    again = [one for one in plan.to_train if one.subject.id in published]

    def differing(planned: PlannedSubject) -> tuple[str, ...]:
        try:
            record = registry.find(planned.subject.id)
            found = tuple(_differences(plan, planned, record))
            return found or (_OTHERWISE if record.fingerprint != planned.fingerprint else ())
        except DbrayError:  # nothing usable is published
            return ()

    with ThreadPoolExecutor(_LOOKUPS_AT_ONCE) as threads:
        found = zip(again, threads.map(differing, again), strict=True)
        return {planned.subject.id: differences for planned, differences in found if differences}


def renamed(plan: Plan, registry: Registry) -> dict[str, str]:
    """Published ids, by the new id, of subjects that seem to be renamed: same images."""
    new = {one.image_digests: one.subject.id for one in plan.to_train}
    ours = {one.subject.id for one in plan.subjects}
    return {
        new[record.image_digests]: record.id
        for record in (registry.list() if new else ())
        if record.image_digests in new and record.id not in ours
    }


def in_another_form(plan: Plan, registry: Registry) -> Iterator[Problem]:
    """Report subjects whose folder is named as a published model's was, in another Unicode form.

    macOS writes "Zo\u00eb" as two characters; the ids are 'zo' and 'zoe'.
    """
    published = set(registry.store.names("models"))
    for one in plan.to_train:
        subject_id, image = one.subject.id, one.subject.images[0]
        name = Path(image).parent.name if "://" not in image else ""
        for form in ("NFC", "NFD"):
            other = slug(unicodedata.normalize(form, name))
            if slug(name) == subject_id != other and other in published:
                what = (f"its folder's name differs only in Unicode form from that of the "
                        f"published model {other}; it is trained as another subject")  # fmt: skip
                fix = f"to continue {other}, rename the folder to the {form} form of its name"
                yield Problem("warning", f"subject {subject_id}", what, fix, subject_id)


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
    yield from _of_second_stage(record.super_resolution, plan.job.super_resolution)
    if planned.prior_digest is not None or planned.is_taught:
        yield from _fields("prior", record.prior.identity(), plan.job.prior.identity())


def _of_second_stage(old: SuperResolution | None, new: SuperResolution | None) -> Iterator[str]:
    if old is None or new is None:
        if old is not new:
            yield "super_resolution none -> one" if old is None else "super_resolution one -> none"
        return
    for name in ("train", "noise_level"):
        if getattr(old, name) != getattr(new, name):
            yield f"super_resolution.{name} {getattr(old, name)} -> {getattr(new, name)}"
    yield from _fields("super_resolution.recipe", old.recipe.identity(), new.recipe.identity())


def _fields(section: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name in {**old, **new}:
        if old.get(name) != new.get(name):
            yield f"{section}.{name} {old.get(name)} -> {new.get(name)}"
