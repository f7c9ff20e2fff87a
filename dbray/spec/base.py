"""The base class of all values that cross a file, HTTP or process edge."""

from __future__ import annotations

from typing import Any, ClassVar, cast, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import to_jsonable_python

from dbray.errors import SpecError
from dbray.spec.problems import problems_of


class _Reporting(type(BaseModel)):
    """Makes constructors called from Python raise SpecError, as for a job file."""

    def __call__(cls, *args: Any, **fields: Any) -> Any:
        try:
            return super().__call__(*args, **fields)
        except ValidationError as exc:
            model = cast("type[BaseModel]", cls)
            raise SpecError(problems_of(exc, cls.__name__, model=model)) from exc


class Spec(BaseModel, metaclass=_Reporting):
    """A frozen value with known fields only."""

    # Infinity passes every lower bound, and makes models that cannot be read.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    first_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields that `identity` always includes: those of the first version that published models."""

    @model_validator(mode="before")
    @classmethod
    def _reject_booleans_as_numbers(cls, fields: Any) -> Any:
        """Make a boolean a text in a numeric field: Python would take true for 1."""
        if not isinstance(fields, dict):
            return fields
        return {key: _without_booleans(value) if cls._is_numeric(key) else value
                for key, value in fields.items()}  # fmt: skip

    @classmethod
    def _is_numeric(cls, key: Any) -> bool:
        field = cls.model_fields.get(key)
        kinds = _plain_types(field.annotation) if field else set()
        return bool not in kinds and bool(kinds & {int, float})

    def identity(self) -> Any:
        """Return the canonical form for fingerprints: equal for values that mean the same.

        It always has the `first_fields`, and a later field only if it differs from its default: a
        new field of dbray does not change the fingerprints of published models.
        """
        held = {}
        for name, found in type(self).model_fields.items():
            value = getattr(self, name)
            if name in self.first_fields or value != found.get_default():
                canonical = value.identity() if isinstance(value, Spec) else value
                held[name] = to_jsonable_python(canonical)
        return held


def _without_booleans(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_without_booleans(one) for one in value]
    return str(value).lower() if isinstance(value, bool) else value


def _plain_types(annotation: Any) -> set[Any]:
    """Return the types in an annotation: for `tuple[int, int] | None`, int and None."""
    parts = get_args(annotation)
    if parts:
        return set().union(*map(_plain_types, parts))
    return {annotation if isinstance(annotation, type) else type(annotation)}  # of a literal
