"""Lists of subjects in files: JSONL, JSON, YAML and CSV, split into items.

A file is read to its end despite errors: a line that cannot be parsed becomes an entry with that
problem. Does not know the fields, except the columns of CSV.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any

from dbray.errors import SpecError
from dbray.spec import text_files
from dbray.spec.text_files import Item
from dbray.subjects.entries import Entry
from dbray.subjects.images import FORMAT_OF_SUFFIX

Reader = Callable[[str, str], Iterable[Item | Entry]]
"""Takes a file's text and its name."""

_COLUMNS = ("id", "class_noun", "images", "identifier", "captions", "true_class_noun",
            "description")  # fmt: skip
_COLUMN_ALIASES = {"subject_id": "id", "image": "images", "caption": "captions"}


def _refused(name: str, line: int, what: str, fix: str, subject: str | None = None) -> Entry:
    """Make the entry of a line that cannot be parsed."""
    entry = Entry(f"{name}:{line}", subject)
    entry.error(what, fix)
    return entry


def _read_jsonl(text: str, name: str) -> Iterator[Item | Entry]:
    if text.lstrip().startswith("["):
        yield from _read_json(text, name)
        return
    bad: list[tuple[int, str]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = _parse_json(line)
        except (ValueError, RecursionError) as exc:
            bad.append((number, str(exc)))
            continue
        if bad and not isinstance(value, dict):
            continue  # part of the same broken value, and valid JSON by chance
        yield from _bad_lines(name, bad)
        bad = []
        yield Item(value, name, {(): number})
    yield from _bad_lines(name, bad)


def _bad_lines(name: str, bad: list[tuple[int, str]]) -> Iterator[Entry]:
    """Report consecutive lines as one: they usually have one cause."""
    if bad:
        (first, reason), (last, _) = bad[0], bad[-1]
        others = f", like those up to line {last}" if last > first else ""
        what = f"is not valid JSON{others}: {reason}"
        yield _refused(name, first, what, "write each subject as one JSON object in one line")


def _read_json(text: str, name: str) -> list[Item]:
    try:
        values = _parse_json(text)
    except (ValueError, RecursionError) as exc:
        line = getattr(exc, "lineno", 1)
        fix = "check the commas and brackets before that place"
        raise SpecError.of(f"{name}:{line}", f"is not valid JSON: {exc}", fix) from exc
    if isinstance(values, dict) and set(values) == {"subjects"}:
        values = values["subjects"]
    if not isinstance(values, list):
        fix = "write a list of subjects, [{...}, {...}]"
        raise SpecError.of(name, "is not a list of subjects", fix)
    return [Item(value, f"{name}[{index}]") for index, value in enumerate(values)]


def _parse_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_without_repeats)


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


def _read_csv(text: str, name: str) -> Iterable[Item | Entry]:
    return _one_per_subject(_read_rows(text, name))


def _read_rows(text: str, name: str) -> Iterator[Item | Entry]:
    columns: list[str] | None = None
    for line, cells in _rows(text):
        if isinstance(cells, csv.Error):
            fix = "close every quote, and double those inside of a quoted cell"
            yield _refused(name, line, f"is not valid CSV: {cells}", fix)
        elif columns is None:
            columns = _check_columns(cells, f"{name}:{line}")
        elif any(cell.strip() for cell in cells[len(columns) :]):
            what = "has more cells than there are columns"
            fix = "separate the images in a cell by ';', and put quotes around cells with commas"
            yield _refused(name, line, what, fix, cells[0])
        else:
            row = dict(zip(columns, cells, strict=False))
            yield Item(_from_cells(row), name, {(): line})


def _one_per_subject(rows: Iterable[Item | Entry]) -> list[Item | Entry]:
    """Join rows that each give one image of the same subject."""
    joined: list[Item | Entry] = []
    first: dict[tuple[str, str | None], Item] = {}
    for row in rows:
        if isinstance(row, Item) and _gives_one_image(row.value):
            same = first.setdefault((row.value["id"], row.value.get("class_noun")), row)
            if same is not row:
                for key in ("images", "captions"):
                    if key in row.value:
                        same.value[key] = [*same.value.get(key, []), *row.value[key]]
                continue
        joined.append(row)
    return joined


def _gives_one_image(fields: dict[str, Any]) -> bool:
    names = fields.get("images", [])
    is_file = len(names) == 1 and PurePosixPath(names[0]).suffix.lower() in FORMAT_OF_SUFFIX
    return is_file and "id" in fields


def _rows(text: str) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """Yield every row that is not empty, or its error, with the line it begins in."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=_delimiter_of(text))
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as exc:
            yield line, exc
        else:
            if any(cell.strip() for cell in cells):
                yield line, cells


def _delimiter_of(text: str) -> str:
    """Find the separator of the columns: spreadsheets may write ';' or tabs."""
    head = next((line for line in text.splitlines() if line.strip(" ,;\t")), "")
    readable = (sign for sign in ",;\t" if _known_columns(head.split(sign)))
    return next(readable, ",")


def _check_columns(cells: list[str], where: str) -> list[str]:
    if columns := _known_columns(cells):
        return columns
    others = ", ".join(name for name in _COLUMNS if name not in ("id", "images"))
    fix = f"name in the first line the columns id and images, and if wanted {others}"
    what = f"has the columns {', '.join(cell.strip() for cell in cells)}"
    raise SpecError.of(where, what, fix)


def _known_columns(cells: list[str]) -> list[str] | None:
    """Return the canonical names of the columns; None if this is not a list of subjects."""
    names = [cell.strip().strip('"') for cell in cells]
    while names and not names[-1]:
        names.pop()
    if "file_name" in names:  # a metadata file, which may have other columns
        return names
    names = [_COLUMN_ALIASES.get(name, name) for name in names]
    is_list = {"id", "images"} <= set(names) <= set(_COLUMNS) and len(set(names)) == len(names)
    return names if is_list else None


def _from_cells(row: dict[str, str]) -> dict[str, Any]:
    raw: dict[str, Any] = {key: cell.strip() for key, cell in row.items() if cell.strip()}
    if "file_name" in row:
        return raw
    raw["images"] = _images_in_cell(raw.get("images", ""))
    if "captions" in raw:
        raw["captions"] = [part.strip() for part in raw["captions"].split("|")]
    return raw


def _images_in_cell(cell: str) -> list[str]:
    """Split paths separated by ';', or the list that a program wrote: ['a.png', 'b.png']."""
    if cell.startswith("[") and cell.endswith("]"):
        with suppress(SpecError):
            values, _ = text_files.parse_yaml(cell, "")
            if isinstance(values, list) and all(isinstance(value, str) for value in values):
                return values
    return [part.strip() for part in cell.split(";") if part.strip()]


READERS: dict[str, Reader] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".yaml": _read_yaml,
    ".yml": _read_yaml,
}
"""By the suffix of a file's name, in lower case."""
