"""Text files that users write: read them, and tell what is wrong in the files' own terms.

Owns YAML with the line of every key, and the translation of pydantic's findings. Knows no fields.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from dbray.errors import Problem, SpecError, without_secrets

Place = tuple[str | int, ...]
"""The keys and indices that lead to a value."""
Lines = Mapping[Place, int]

# What a union calls its branches: parts of where pydantic finds an error, and keys of no file.
ADDRESS_BRANCH, LIST_BRANCH = "an address", "a list of subjects"

_ID_FORM = "use lower-case letters, digits, '.', '_' and '-', at most 63, letter or digit first"
# By pydantic's word for what was expected: what a key should hold, and how that is written.
_FORMS = {
    "string_type": ("text", "put quotes around it"),
    "tuple_type": ("a list", "write it as [a, b]"),
    "model_type": ("keys of its own", "write its keys under it, indented"),
}


@dataclass(frozen=True, slots=True)
class Item:
    """One value of a list as somebody wrote it, not checked yet.

    `lines` are those of its keys, as seen from the item; its own is that of ().
    """

    value: Any
    file: str
    lines: Lines = field(default_factory=dict)

    @property
    def where(self) -> str:
        """The file, and the line if it is known."""
        return locate(self.file, self.lines)


def read_text(file: Path, if_missing: str = "check the path") -> str:
    """Read a UTF-8 text file, with or without a BOM. Raises SpecError that names it."""
    try:
        return file.read_text(encoding="utf-8-sig")  # Notepad begins every file with a BOM
    except FileNotFoundError as exc:
        raise SpecError.of(str(file), "does not exist", if_missing) from exc
    except (OSError, UnicodeDecodeError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise SpecError.of(
            str(file), f"cannot be read: {reason}", "it must be a readable UTF-8 text file"
        ) from exc


def parse_yaml(text: str, file: str | Path) -> tuple[Any, dict[Place, int]]:
    """Parse YAML; return the data and the line number of every key and item.

    Raises:
        SpecError: with line and column of a syntax error, or both lines of every repeated key.
    """
    lines: dict[Place, int] = {}
    try:
        node = yaml.compose(text, Loader=_WithoutAliases)
        data = yaml.safe_load(text)
        repeats = list(_collect_lines(node, (), lines))
    except (yaml.YAMLError, ValueError, RecursionError) as exc:  # ValueError: the date 2026-99-99
        mark = getattr(exc, "problem_mark", None)
        where = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else str(file)
        what = f"is not valid YAML: {getattr(exc, 'problem', None) or exc}"
        fix = getattr(exc, "note", None) or "check indentation and quotes"
        raise SpecError.of(where, what, fix) from exc
    if repeats:
        raise SpecError([
            Problem("error", f"{file}:{line}", f"{key!r} is there twice, here and in line {first}",
                    "join the two: of a repeated key only the last would count")
            for key, line, first in repeats
        ])  # fmt: skip
    return data, lines


class _WithoutAliases(yaml.SafeLoader):
    """YAML where all stands once: a few hundred bytes of aliases could stand for gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            alias = self.peek_event()
            raise yaml.MarkedYAMLError(
                problem=f"the alias *{alias.anchor} is not followed",
                problem_mark=alias.start_mark,
                note="write out what it stands for",
            )
        return super().compose_node(parent, index)


def _collect_lines(
    node: yaml.Node | None, path: Place, lines: dict[Place, int]
) -> Iterator[tuple[str, int, int]]:
    """Fill `lines`; give every key that its mapping has already, with its line and the first."""
    if node is None:
        return
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            place, line = (*path, key.value), key.start_mark.line + 1
            if place in lines:
                yield key.value, line, lines[place]
                continue
            lines[place] = line
            yield from _collect_lines(value, place, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _collect_lines(value, (*path, index), lines)


def items_of(values: Sequence[Any], file: str, lines: Lines, start: Place = ()) -> list[Item]:
    """Take apart a list that stands at `start` in a file."""
    lines_of: list[dict[Place, int]] = [{} for _ in values]
    depth = len(start)
    for place, line in lines.items():
        if place[:depth] == start and len(place) > depth:
            lines_of[int(place[depth])][place[depth + 1 :]] = line
    return [Item(value, file, own) for value, own in zip(values, lines_of, strict=True)]


def locate(file: str, lines: Lines, place: Place = ()) -> str:
    """Return 'file:line' of a place, or of the nearest one round it whose line is known."""
    while place and place not in lines:
        place = place[:-1]
    return f"{file}:{lines[place]}" if place in lines else file


def problems_of(
    exc: ValidationError,
    where: str,
    lines: Lines | None = None,
    model: type[BaseModel] | None = None,
) -> list[Problem]:
    """Translate pydantic's findings: one Problem each, with the line where it is known.

    With the `model` that refused, unknown keys are answered with the nearest known one.
    """
    problems = []
    for error in exc.errors(include_url=False):
        place = tuple(part for part in error["loc"] if part not in (ADDRESS_BRANCH, LIST_BRANCH))
        fields = _fields_at(model, place[:-1])
        what, fix = _explain(error, place[-1] if place else "value", fields)
        name = ".".join(str(part) for part in place) or "value"
        problems.append(Problem("error", locate(where, lines or {}, place), f"{name}: {what}", fix))
    return problems


def _fields_at(model: type[BaseModel] | None, place: Place) -> dict[str, FieldInfo]:
    """The fields, under the names that users write, of the mapping at a place."""
    for part in place:
        found = _fields_of(model).get(str(part))
        model = found and _section(found)
    return _fields_of(model)


def _fields_of(model: type[BaseModel] | None) -> dict[str, FieldInfo]:
    fields = model.model_fields if model else {}
    return {found.alias or name: found for name, found in fields.items()}


def _section(found: FieldInfo) -> type[BaseModel] | None:
    """The model of a field that holds keys of its own."""
    kind = found.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _explain(error: Any, key: str | int, fields: dict[str, FieldInfo]) -> tuple[str, str]:
    """Say what one pydantic finding means, and what to do about it."""
    kind, value = error["type"], error.get("input")
    if kind == "extra_forbidden":
        return "is no known key", _nearest(str(key), fields)
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
    """Begin to show a value; a secret that was cut could not be known for one any more."""
    return without_secrets(repr(value))[:80]


def _explain_pattern(pattern: str, value: Any) -> tuple[str, str]:
    if "._-" in pattern:
        return f"{_shown(value)} is no id", _ID_FORM
    # It may be a key that was taken for its digest: not shown.
    return "has not the right form", f"give what matches {pattern}"


def _explain_form(kind: str, value: Any, description: str | None) -> tuple[str, str]:
    if value is None:
        what, fix = "is empty", "write it, or omit it"
    else:
        wanted, fix = _FORMS[kind]
        what = f"should hold {wanted}, and not {_shown(value)}"
    return what, f"{fix}. {description}" if description else fix


def _nearest(key: str, fields: dict[str, FieldInfo]) -> str:
    """Say what an unknown key may have been meant to be."""
    for name, found in fields.items():
        if key in _fields_of(_section(found)):
            return f"move it under '{name}'"
    if close := get_close_matches(key, fields, n=1):
        return f"write '{close[0]}' instead of '{key}', or remove it"
    return f"remove '{key}' ('dbray schema' lists every key)"
