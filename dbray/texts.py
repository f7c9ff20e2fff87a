"""Text files that users write: read them, and tell what is wrong in the files' own terms.

Owns YAML with the line of every key, and the translation of pydantic's findings. Knows no fields.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from dbray.errors import Problem, SpecError


def read_text(file: Path) -> str:
    """Read a UTF-8 text file. Raises SpecError that names it."""
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError as exc:
        fix = "check the path, or make one with 'dbray init'"
        raise SpecError([Problem("error", str(file), "does not exist", fix)]) from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise SpecError([Problem("error", str(file), f"cannot be read: {exc}",
                                 "it must be a readable UTF-8 text file")]) from exc  # fmt: skip


def parse_yaml(text: str, file: Path) -> tuple[Any, dict[tuple[str | int, ...], int]]:
    """Parse YAML; return the data and the line number of every key and item.

    Raises:
        SpecError: with line and column of a syntax error, or both lines of every repeated key.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else str(file)
        what = f"is not valid YAML: {getattr(exc, 'problem', exc)}"
        raise SpecError([Problem("error", where, what, "check indentation and quotes")]) from exc
    lines: dict[tuple[str | int, ...], int] = {}
    repeats = list(_collect_lines(node, (), lines))
    if repeats:
        raise SpecError([
            Problem("error", f"{file}:{line}", f"{key!r} is there twice, here and in line {first}",
                    "join the two: of a repeated key only the last would count")
            for key, line, first in repeats
        ])  # fmt: skip
    return data, lines


def _collect_lines(
    node: yaml.Node | None, path: tuple[str | int, ...], lines: dict[tuple[str | int, ...], int]
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


def problems_of(
    exc: ValidationError, where: str, lines: dict[tuple[str | int, ...], int] | None = None
) -> list[Problem]:
    """Translate pydantic's findings: one Problem each, with the line where it is known."""
    problems = []
    for error in exc.errors(include_url=False):
        # The tags of unions, which are phrases, are keys of no file.
        location = tuple(part for part in error["loc"] if " " not in str(part))
        place = where
        if lines:
            known = location
            while known and known not in lines:
                known = known[:-1]
            if known in lines:
                place = f"{where}:{lines[known]}"
        name = ".".join(str(part) for part in location) or "value"
        what = error["msg"].removeprefix("Value error, ")
        problems.append(Problem("error", place, f"{name}: {what}", _fix_for(error, location)))
    return problems


def _fix_for(error: Any, location: tuple[str | int, ...]) -> str:
    """Say what to do about one pydantic finding."""
    kind, last = error["type"], location[-1] if location else "value"
    if kind == "extra_forbidden":
        return f"remove '{last}', or check its spelling ('dbray schema' lists every key)"
    if kind == "missing":
        return f"add '{last}'"
    if kind == "string_pattern_mismatch":
        return "use lower-case letters, digits, '.', '_' and '-', at most 63, letter or digit first"
    return f"change '{last}' (it is {error.get('input')!r:.80})"
