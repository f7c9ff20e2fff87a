"""The source of each value of a job's recipe, prior, previews and scoring.

A value is taken from the first source that has it: the job, its preset, the base's own `dbray.yaml`
(for the method, then for all methods), the base's family (for the method, then for all methods),
dbray's default.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dbray.spec.presets import PRESETS
from dbray.spec.recipe import Recipe
from dbray.spec.sections import Previews, Prior, Scoring
from dbray.spec.super_resolution import Enlargement, SuperResolution

if TYPE_CHECKING:
    from dbray.bases import Base

Section = TypeVar("Section", Recipe, Prior, Previews, Scoring)

OF_JOB, OF_DBRAY = "the job", "dbray"
Layer = tuple[str, Mapping[str, Any]]
"""A source and its values."""


@dataclass(frozen=True)
class Filled(Generic[Section]):
    """A section with every value, and the source of each value by field, first sources first."""

    section: Section
    sources: Mapping[str, str]


def fill(base: Base, section: Section, preset: str | None = None) -> Filled[Section]:
    """Fill the unset fields of a section of a job."""
    name = type(section).__name__.lower()
    found: dict[str, tuple[str, Any]] = {}
    for source, values in _layers(base, name, _chosen(section), preset):
        for field, value in values.items():
            found.setdefault(field, (source, value))
    filled = section.model_validate({field: value for field, (_, value) in found.items()})
    rest = type(section).model_fields.keys() - {"preset"}
    sources = {field: source for field, (source, _) in found.items()}
    return Filled(filled, sources | dict.fromkeys(sorted(rest - sources.keys()), OF_DBRAY))


def fill_super_resolution(base: Base, given: SuperResolution | None) -> SuperResolution | None:
    """Fill what a job leaves open about the second stage of its base; None without one."""
    second = base.super_resolution
    if second is None:
        return None
    stage: SuperResolution = SuperResolution() if given is None else given
    recommended = dict(base.defaults.get("super_resolution") or {})
    own = {**second.defaults.get("recipe", {}), **recommended.pop("recipe", {})}
    second = replace(second, defaults={**second.defaults, "recipe": own})
    return SuperResolution.model_validate({
        **second.family.defaults["super_resolution"],
        **recommended,
        **stage.model_dump(include=stage.model_fields_set),
        "recipe": fill(second, stage.recipe, stage.recipe.preset).section,
        "then": _fill_enlargement(second, stage.then),
    })  # fmt: skip


def _fill_enlargement(base: Base, given: Enlargement | None) -> Enlargement | None:
    """Fill what is left open about a network that is not fine-tuned, as its pipeline draws."""
    following = base.super_resolution
    if given is None or following is None:
        return None
    family: Any = following.family
    return Enlargement.model_validate({
        "noise_level": family.usual_level,
        **family.defaults["super_resolution"],
        **given.model_dump(include=given.model_fields_set),
        "then": _fill_enlargement(following, given.then),
    })  # fmt: skip


def _chosen(section: Recipe | Prior | Previews | Scoring) -> dict[str, Any]:
    chosen = section.model_dump(include=section.model_fields_set - {"preset"})
    if chosen.get("resolution", 0) is None:
        del chosen["resolution"]  # "the base's own", which is filled in
    return chosen


def _layers(
    base: Base, name: str, chosen: Mapping[str, Any], preset: str | None
) -> Iterator[Layer]:
    named = PRESETS[preset].values(name) if preset else {}
    makers, family = base.defaults, base.family
    own, general = makers.get(name, {}), family.defaults.get(name, {})
    yield OF_JOB, chosen
    yield f"preset {preset}", named
    if name == "recipe":
        kind = _kind((chosen, named, own))
        yield f"{base.name} for {kind}", makers.get("methods", {}).get(kind, {})
        yield base.name, own
        yield f"{family.name} for {kind}", family.recipes.get(kind, {})
        yield base.name, {"resolution": base.resolution}
    else:
        yield base.name, own
        if name != "scoring" and base.distilled:
            yield f"{family.name}, distilled", family.few_steps
    yield family.name, general


def _kind(layers: tuple[Mapping[str, Any], ...]) -> str:
    """Return the kind of the method in the first layer that has one, else dbray's default."""
    method = next((one["method"] for one in layers if "method" in one), Recipe().method.kind)
    return method["kind"] if isinstance(method, dict) else method
