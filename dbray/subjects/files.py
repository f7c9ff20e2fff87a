"""Lists of subjects in files: JSONL, YAML and CSV, taken apart into items.

A file is read to its end whatever is wrong in it: a line that cannot be taken apart becomes an
entry with that problem. Knows no fields, except the columns of CSV.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from dbray.errors import SpecError
from dbray.spec import text_files
from dbray.spec.text_files import Item
from dbray.subjects.entries import Entry

Reader = Callable[[str, str], Iterable[Item | Entry]]
"""Takes a file's text and its name."""

_COLUMNS = ("id", "class_noun", "images", "identifier", "captions")


def _refused(name: str, line: int, what: str, fix: str, subject: str | None = None) -> Entry:
    """Make the entry of a line that cannot be taken apart."""
    entry = Entry(f"{name}:{line}", subject)
    entry.error(what, fix)
    return entry


def _read_jsonl(text: str, name: str) -> Iterator[Item | Entry]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line, object_pairs_hook=_without_repeats)
        except (ValueError, RecursionError) as exc:
            what = f"is not valid JSON: {exc}"
            yield _refused(name, number, what, "write one JSON object per line")
        else:
            yield Item(value, name, {(): number})


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {repeated!r} is given twice")
    return value


def _read_yaml(text: str, name: str) -> list[Item]:
    data, lines = text_files.parse_yaml(text, name)
    start = ()
    if isinstance(data, dict) and set(data) == {"subjects"}:
        data, start = data["subjects"], ("subjects",)
    if not isinstance(data, list):
        fix = "write one '- id: ...' item per subject"
        raise SpecError.of(name, "is not a list of subjects", fix)
    return text_files.items_of(data, name, lines, start)


def _read_csv(text: str, name: str) -> Iterator[Item | Entry]:
    columns: list[str] | None = None
    for line, cells in _rows(text):
        if isinstance(cells, csv.Error):
            fix = "check the quotes: one that is opened here is not closed as it should be"
            yield _refused(name, line, f"is not valid CSV: {cells}", fix)
        elif columns is None:
            columns = _check_columns(cells, f"{name}:{line}")
        elif len(cells) > len(columns):
            what = "has more cells than there are columns"
            yield _refused(name, line, what, "put quotes around commas", cells[0])
        else:
            row = dict(zip(columns, cells, strict=False))
            yield Item(_from_cells(row), name, {(): line})


def _rows(text: str) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """Yield every row that is not empty, or what is wrong with it, with the line it begins in."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as exc:
            yield line, exc
        else:
            if cells:
                yield line, cells


def _check_columns(cells: list[str], where: str) -> list[str]:
    columns = ["id" if cell.strip() == "subject_id" else cell.strip() for cell in cells]
    if {"id", "images"} <= set(columns) <= set(_COLUMNS) and len(set(columns)) == len(columns):
        return columns
    others = ", ".join(name for name in _COLUMNS if name not in ("id", "images"))
    fix = f"name in the first line the columns id and images, and if wanted {others}"
    raise SpecError.of(where, f"has the columns {', '.join(columns)}", fix)


def _from_cells(row: dict[str, str]) -> dict[str, Any]:
    raw: dict[str, Any] = {key: cell.strip() for key, cell in row.items() if cell.strip()}
    raw["images"] = [part.strip() for part in raw.get("images", "").split(";") if part.strip()]
    if "captions" in raw:
        raw["captions"] = [part.strip() for part in raw["captions"].split("|")]
    return raw


READERS: dict[str, Reader] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".csv": _read_csv,
    ".yaml": _read_yaml,
    ".yml": _read_yaml,
}
"""By the suffix of a file's name, in lower case."""
