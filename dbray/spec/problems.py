"""Translation of pydantic's errors into problems that users can act on.

Owns the text for each kind of mistake and the suggestions for unknown keys.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from dbray.errors import Problem, without_secrets
from dbray.spec import foreign_keys
from dbray.spec.text_files import Lines, Place, locate

# Names of a union's branches: parts of the location in pydantic's errors, but not keys of a file.
ADDRESS_BRANCH, LIST_BRANCH = "an address", "a list of subjects"

_ID_FORM = "use lower-case letters, digits, '.', '_' and '-', at most 63, letter or digit first"
# By pydantic's error type: what the value should be, and how to write it.
_FORMS = {
    "string_type": ("text", "put quotes around it"),
    "tuple_type": ("a list", "write it as [a, b]"),
    "model_type": ("a mapping", "write its keys under it, indented"),
    "int_parsing": ("a whole number", "write it in decimal digits, as in 200"),
    "int_type": ("a whole number", "write it in decimal digits, as in 200"),
    "int_from_float": ("a whole number", "write it without a fraction, as in 200"),
    "float_parsing": ("a number", "write it in decimal digits, as in 0.5 or 5e-6"),
    "float_type": ("a number", "write it in decimal digits, as in 0.5 or 5e-6"),
    "bool_parsing": ("true or false", "write true or false"),
    "bool_type": ("true or false", "write true or false"),
}


def problems_of(
    exc: ValidationError,
    where: str,
    lines: Lines | None = None,
    model: type[BaseModel] | None = None,
) -> list[Problem]:
    """Translate pydantic's errors: one Problem each, with the line where it is known.

    With the `model` that was validated, a fix names the known key nearest to an unknown one.
    """
    problems = []
    for error in exc.errors(include_url=False):
        place = tuple(part for part in error["loc"] if part not in (ADDRESS_BRANCH, LIST_BRANCH))
        fields = _fields_at(model, place[:-1])
        what, fix = _explain(error, place[-1] if place else "value", fields)
        if error["type"] == "extra_forbidden":
            found = _fields_of(model)
            fix = _translated(place, found) or _elsewhere(place, found) or fix
        name = ".".join(str(part) for part in place) or "value"
        problems.append(Problem("error", locate(where, lines or {}, place), f"{name}: {what}", fix))
    return problems


def _fields_at(model: type[BaseModel] | None, place: Place) -> dict[str, FieldInfo]:
    """Return the fields of the mapping at a place, by the names that users write."""
    for part in place:
        found = _fields_of(model).get(str(part))
        model = found and _section(found)
    return _fields_of(model)


def _fields_of(model: type[BaseModel] | None) -> dict[str, FieldInfo]:
    fields = model.model_fields if model else {}
    return {found.alias or name: found for name, found in fields.items()}


def _section(found: FieldInfo) -> type[BaseModel] | None:
    """Return the model of a field that has keys of its own."""
    kind = found.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _explain(error: Any, key: str | int, fields: dict[str, FieldInfo]) -> tuple[str, str]:
    """Explain one error of pydantic, and how to fix it."""
    kind, value = error["type"], error.get("input")
    if kind == "extra_forbidden":
        return "unknown key", _nearest(str(key), fields)
    if kind == "missing":
        return "is missing", f"give {key + 1} values" if isinstance(key, int) else f"add '{key}'"
    if kind == "string_pattern_mismatch":
        return _explain_pattern(error["ctx"]["pattern"], value)
    if kind == "string_unicode":
        return f"{_shown(value)} is not UTF-8", "write it, or name the file, in UTF-8"
    if kind in _FORMS or value is None:
        found = fields.get(str(key))
        return _explain_form(kind, value, found.description if found else None)
    what = error["msg"].removeprefix("Value error, ")
    return what, f"change '{key}' (it is {_shown(value)})"


def _shown(value: Any) -> str:
    """Return the beginning of a value; its secrets are blanked before it is cut."""
    return without_secrets(repr(value))[:80]


def _explain_pattern(pattern: str, value: Any) -> tuple[str, str]:
    if "._-" in pattern:
        return f"{_shown(value)} is not a valid id", _ID_FORM
    # The value may be a secret key in place of its digest, so it is not shown.
    return "does not have the right form", f"give a value that matches {pattern}"


def _explain_form(kind: str, value: Any, description: str | None) -> tuple[str, str]:
    if value is None:
        what, fix = "is empty", "write it, or omit it"
    else:
        wanted, fix = _FORMS[kind]
        what = f"must be {wanted}, not {_shown(value)}"
    return what, f"{fix}. {description}" if description else fix


def _translated(place: Place, sections: dict[str, FieldInfo]) -> str | None:
    """Return the fix for another trainer's key; None for all other keys."""
    key = str(place[-1])
    theirs = foreign_keys.canonical(key)
    if "recipe" not in sections:
        return None  # not a job file
    if theirs in foreign_keys.WITHOUT_KEY:
        return f"remove '{key}': {foreign_keys.WITHOUT_KEY[theirs]}"
    if theirs not in foreign_keys.OURS:
        return None
    section, _, ours = foreign_keys.OURS[theirs].rpartition(".")
    if place[:-1] == ((section,) if section else ()):
        return f"write '{ours}' instead of '{key}'"
    where = f"under '{section}'" if section else "at the top of the file"
    return f"write '{ours}' {where} instead of '{key}'"


def _elsewhere(place: Place, fields: dict[str, FieldInfo]) -> str | None:
    """Return the fix for a key of another section, or of none; None for all other keys."""
    if len(place) != 2:  # not in a section
        return None
    key = str(place[-1])
    if key in fields:
        return f"move '{key}' to the top of the file"
    sections = [f"'{name}'" for name, found in fields.items() if key in _fields_of(_section(found))]
    return f"move it under {' or '.join(sections)}" if sections else None


def _nearest(key: str, fields: dict[str, FieldInfo]) -> str:
    """Suggest the key that was meant by an unknown one."""
    for name, found in fields.items():
        if key in _fields_of(_section(found)):
            return f"move it under '{name}'"
    if close := get_close_matches(key, fields, n=1):
        return f"write '{close[0]}' instead of '{key}', or remove it"
    return f"remove '{key}' ('dbray schema' lists every key)"
