"""Text files that users write: how they are read, and the line of every key and item.

Owns YAML. Does not know the fields: the callers check the values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dbray.errors import Problem, SpecError

Place = tuple[str | int, ...]
"""The keys and indices that lead to a value."""
Lines = Mapping[Place, int]


@dataclass(frozen=True, slots=True)
class Item:
    """One value of a list as it was written, unchecked.

    `lines` has the lines of its keys, relative to the item; the item's own line is that of ().
    """

    value: Any
    file: str
    lines: Lines = field(default_factory=dict)

    @property
    def where(self) -> str:
        """Return the file, and the line if it is known."""
        return locate(self.file, self.lines)


def read_text(file: Path, if_missing: str = "check the path") -> str:
    """Read a UTF-8 text file, with or without a BOM. Raises SpecError that names it."""
    try:
        return file.read_text(encoding="utf-8-sig")  # Windows editors may add a BOM
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
        loader = _Loader(text)
        node = loader.get_single_node()
        data = None if node is None else loader.construct_document(node)
        repeats = list(_collect_lines(node, (), lines))
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else str(file)
        what = f"is not valid YAML: {getattr(exc, 'problem', None) or exc}"
        fix = getattr(exc, "note", None) or "check indentation and quotes"
        raise SpecError.of(where, what, fix) from exc
    if repeats:
        raise SpecError([
            Problem("error", f"{file}:{line}", f"{key!r} is given twice, here and in line {first}",
                    "merge the two: of a repeated key only the last would count")
            for key, line, first in repeats
        ])  # fmt: skip
    return data, lines


class _Loader(yaml.SafeLoader):
    """YAML in which values keep their written form.

    It leaves out YAML 1.1's octal 0200, sexagesimal 12:30, dates, and yes, no, on and off as truth
    values: they stay text, and so do numbers in other bases. Aliases are an error: a few hundred
    bytes of them can expand to gigabytes.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            alias = self.peek_event()
            raise yaml.MarkedYAMLError(
                problem=f"the alias *{alias.anchor} is not followed",
                problem_mark=alias.start_mark,
                note="write its value out here",
            )
        return super().compose_node(parent, index)


_TAG = "tag:yaml.org,2002:"
_PLAIN_SCALARS = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    "float": (
        r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in resolvers if tag in (f"{_TAG}null", f"{_TAG}merge")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _name, (_form, _firsts) in _PLAIN_SCALARS.items():
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_form})$"), list(_firsts))


def _collect_lines(
    node: yaml.Node | None, path: Place, lines: dict[Place, int]
) -> Iterator[tuple[str, int, int]]:
    """Fill `lines`; yield every repeated key, with its line and that of the first."""
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
    """Split the list at `start` in a file into its items."""
    lines_of: list[dict[Place, int]] = [{} for _ in values]
    depth = len(start)
    for place, line in lines.items():
        if place[:depth] == start and len(place) > depth:
            lines_of[int(place[depth])][place[depth + 1 :]] = line
    return [Item(value, file, own) for value, own in zip(values, lines_of, strict=True)]


def locate(file: str, lines: Lines, place: Place = ()) -> str:
    """Return 'file:line' of a place, or of the nearest enclosing one whose line is known."""
    while place and place not in lines:
        place = place[:-1]
    return f"{file}:{lines[place]}" if place in lines else file
