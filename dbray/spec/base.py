"""The base of all values that cross a file, HTTP or process edge."""

from __future__ import annotations

from typing import Any, ClassVar, cast, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import to_jsonable_python

from dbray.errors import SpecError
from dbray.spec.problems import problems_of


class _Reporting(type(BaseModel)):
    """Constructors called from Python report mistakes as SpecError, as a job file's are."""

    def __call__(cls, *args: Any, **fields: Any) -> Any:
        try:
            return super().__call__(*args, **fields)
        except ValidationError as exc:
            model = cast("type[BaseModel]", cls)
            raise SpecError(problems_of(exc, cls.__name__, model=model)) from exc


class Spec(BaseModel, metaclass=_Reporting):
    """A frozen value with known fields only."""

    # Infinity passes every lower bound, and makes models that nobody can read.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    first_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields that `identity` always holds: those of the first version that was published with."""

    @model_validator(mode="before")
    @classmethod
    def _truth_is_not_a_number(cls, fields: Any) -> Any:
        """Make a truth value a text where a number belongs: Python would take true for 1."""
        if not isinstance(fields, dict):
            return fields
        return {key: _without_truth(value) if cls._holds_numbers(key) else value
                for key, value in fields.items()}  # fmt: skip

    @classmethod
    def _holds_numbers(cls, key: Any) -> bool:
        field = cls.model_fields.get(key)
        kinds = _plain_types(field.annotation) if field else set()
        return bool not in kinds and bool(kinds & {int, float})

    def identity(self) -> Any:
        """Canonical form, for fingerprints: equal for values that mean the same.

        Holds the `first_fields` always, and a later field only where it differs from its default.
        So a field that dbray learns later changes no fingerprint of what is published already.
        """
        held = {}
        for name, found in type(self).model_fields.items():
            value = getattr(self, name)
            if name in self.first_fields or value != found.get_default():
                canonical = value.identity() if isinstance(value, Spec) else value
                held[name] = to_jsonable_python(canonical)
        return held


def _without_truth(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_without_truth(one) for one in value]
    return str(value).lower() if isinstance(value, bool) else value


def _plain_types(annotation: Any) -> set[Any]:
    """The types that an annotation is made of: of `tuple[int, int] | None`, int and None."""
    parts = get_args(annotation)
    if parts:
        return set().union(*map(_plain_types, parts))
    return {annotation if isinstance(annotation, type) else type(annotation)}  # of a literal
