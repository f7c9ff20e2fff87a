"""How users list subjects: JSONL, YAML and CSV files, folders, the google/dreambooth layout.

Owns the formats and the meaning of relative paths. Lists are read to their end whatever is wrong in
them; each finding stays with its entry. Opens no image: dbray.manifest looks at those.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from dbray import disks, spec, store, texts
from dbray.errors import Problem, SpecError, StoreError
from dbray.images import IMAGE_SUFFIXES
from dbray.spec import Subject

CLASS_FILE = "class.txt"
# The file of github.com/google/dreambooth: "subject_name,class" lines under the heading "Classes",
# then lists of prompts under the heading "Prompts".
CLASSES_FILE = "prompts_and_classes.txt"

_NO_IMAGES = ("has no images", "give 3 to 6 photographs of it")
_SCHEMES = ("file", "s3", "gs")
_COLUMNS = ("id", "class_noun", "images", "identifier", "captions")
# What cameras write and dbray does not read: such a file is named, not passed over in silence.
_FOREIGN_SUFFIXES = frozenset(
    {".heic", ".heif", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".jxl", ".dng", ".cr2", ".nef"}
)


@dataclass(slots=True)
class Entry:
    """One listed subject, as far as it could be read; `images` are absolute paths or URIs."""

    where: str
    name: str | None = None
    subject: Subject | None = None
    images: tuple[str, ...] = ()
    problems: list[Problem] = field(default_factory=list)

    def error(self, what: str, fix: str) -> None:
        """Note what makes the subject unusable."""
        self.problems.append(Problem("error", self.where, what, fix, self.name))

    def warn(self, what: str, fix: str) -> None:
        """Note what the user should look at."""
        self.problems.append(Problem("warning", self.where, what, fix, self.name))


@dataclass(frozen=True, slots=True)
class _Origin:
    """The list being read: its name, what its relative paths start from, the default class noun."""

    name: str
    base: str
    class_noun: str | None


def parse(
    source: str | Sequence[Subject], class_noun: str | None, folder: str
) -> tuple[list[Entry], list[Problem]]:
    """Read what `source` lists; return its entries, and the problems that belong to none."""
    try:
        if not isinstance(source, str):
            origin = _Origin("subjects", folder, class_noun)
            raws = [subject.model_dump() for subject in source]
            return [_entry(r, f"subjects[{i}]", origin) for i, r in enumerate(raws)], []
        local = _anchor(source, folder) if _is_local(source) else Path()
        if _is_local(source) and local.is_dir():
            return scan(local, class_noun)
        return _read_file(source, local, class_noun), []
    except SpecError as exc:
        return [], list(exc.problems)
    except (OSError, ValueError, StoreError, csv.Error) as exc:
        problem = Problem("error", str(source), f"cannot be read: {exc}", "check the path")
        return [], [problem]


def _read_file(source: str, local: Path, class_noun: str | None) -> list[Entry]:
    suffix = PurePosixPath(source).suffix.lower()
    readers = {".jsonl": _read_jsonl, ".ndjson": _read_jsonl, ".csv": _read_csv}
    readers |= {".yaml": _read_yaml, ".yml": _read_yaml}
    if _is_local(source) and not local.exists():
        fix = "check the path, or make a manifest with 'dbray init'"
        raise SpecError([Problem("error", source, "does not exist", fix)])
    if suffix not in readers:
        fix = "give a .jsonl, .yaml or .csv file, or a folder on this machine"
        raise SpecError([Problem("error", source, "is no manifest", fix)])
    if _is_local(source):
        text, origin = texts.read_text(local), _Origin(source, str(local.parent), class_noun)
    else:
        text = store.read_uri(source).decode("utf-8")
        origin = _Origin(source, source.rpartition("/")[0], class_noun)
    return list(readers[suffix](text.removeprefix("\ufeff"), origin))


def _is_local(path: str) -> bool:
    return "://" not in path or path.startswith("file://")


def _anchor(path: str, folder: str) -> Path:
    """Make a local path absolute. Raises StoreError."""
    absolute = path.startswith(("/", "~", "file://"))
    return disks.local_path(path if absolute else f"{folder}/{path}") or Path(path)


def _read_jsonl(text: str, origin: _Origin) -> Iterator[Entry]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{origin.name}:{number}"
        try:
            raw = json.loads(line, object_pairs_hook=_without_repeats)
        except (ValueError, RecursionError) as exc:
            entry = Entry(where)
            entry.error(f"is not valid JSON: {exc}", "write one JSON object per line")
            yield entry
        else:
            yield _entry(raw, where, origin)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {repeated!r} is given twice")
    return value


def _read_yaml(text: str, origin: _Origin) -> Iterator[Entry]:
    data, lines = texts.parse_yaml(text, Path(origin.name))
    start = ()
    if isinstance(data, dict) and set(data) == {"subjects"}:
        data, start = data["subjects"], ("subjects",)
    if not isinstance(data, list):
        fix = "write one '- id: ...' item per subject"
        raise SpecError([Problem("error", origin.name, "is not a list of subjects", fix)])
    lines_of: dict[str | int, dict[tuple[str | int, ...], int]] = {}
    for path, line in lines.items():
        if path[: len(start)] == start and len(path) > len(start):
            lines_of.setdefault(path[len(start)], {})[path[len(start) + 1 :]] = line
    for index, raw in enumerate(data):
        known = lines_of.get(index, {})
        yield _entry(raw, f"{origin.name}:{known.get((), 1)}", origin, known)


def _read_csv(text: str, origin: _Origin) -> Iterator[Entry]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    columns = ["id" if name == "subject_id" else name for name in reader.fieldnames or ()]
    if not {"id", "images"} <= set(columns) <= set(_COLUMNS) or len(set(columns)) < len(columns):
        fix = f"its first line names columns: id, images, and if wanted {', '.join(_COLUMNS)}"
        what = f"has the columns {', '.join(columns) or 'none'}"
        raise SpecError([Problem("error", f"{origin.name}:1", what, fix)])
    reader.fieldnames = columns
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as exc:
            entry = Entry(f"{origin.name}:{reader.reader.line_num}")
            entry.error(f"is not valid CSV: {exc}", "check the quotes")
            yield entry
            continue
        where = f"{origin.name}:{reader.line_num}"
        if None in row:
            entry = Entry(where, row.get("id"))
            entry.error("has more cells than there are columns", "put quotes around commas")
            yield entry
            continue
        yield _entry(_from_cells(row), where, origin)


def _from_cells(row: dict[str, str | None]) -> dict[str, Any]:
    raw: dict[str, Any] = {key: cell.strip() for key, cell in row.items() if cell and cell.strip()}
    raw["images"] = [part.strip() for part in raw.get("images", "").split(";") if part.strip()]
    if "captions" in raw:
        raw["captions"] = [part.strip() for part in raw["captions"].split("|")]
    return raw


def _entry(
    raw: Any, where: str, origin: _Origin, lines: dict[tuple[str | int, ...], int] | None = None
) -> Entry:
    """Make an entry of one item; what of it is wrong does not hide the rest."""
    entry = Entry(where)
    if not isinstance(raw, dict):
        entry.error("is no subject", "write a mapping with 'id', 'class_noun' and 'images'")
        return entry
    raw = dict(raw)
    if "subject_id" in raw and "id" not in raw:
        raw["id"] = raw.pop("subject_id")
    if isinstance(raw.get("id"), str):
        entry.name = raw["id"]
    if raw.get("class_noun") is None and origin.class_noun is not None:
        raw["class_noun"] = origin.class_noun
    given = raw.get("images")
    if isinstance(given, str):
        given = raw["images"] = [given]
    if isinstance(given, list | tuple):
        entry.images = tuple(_find_images(entry, given, origin.base))
        if not given:
            entry.error(*_NO_IMAGES)
    try:
        subject = Subject.model_validate(raw)
    except ValidationError as exc:
        found = texts.problems_of(exc, origin.name if lines else where, lines)
        entry.problems += [dataclasses.replace(p, subject=entry.name) for p in found]
        return entry
    entry.subject = subject.model_copy(update={"images": entry.images})
    _check_captions(entry, subject.captions)
    return entry


def _find_images(entry: Entry, given: Iterable[Any], base: str) -> Iterator[str]:
    """Make paths absolute, and put the images of a folder in its place."""
    for path in given:
        if not isinstance(path, str):
            continue  # the model's own check names it
        try:
            located = _locate(path, base)
        except (ValueError, StoreError) as exc:
            entry.error(f"{path!r}: {exc}", "give a path, or an s3:// or gs:// address")
            continue
        if "://" in located or not Path(located).is_dir():
            yield located
        elif found := list(_images_in(Path(located), entry)):
            yield from found
        else:
            entry.error(f"{located} holds no images", "put PNG, JPEG or WebP files into it")


def _locate(path: str, base: str) -> str:
    """Return an absolute local path or a URI. Raises ValueError or StoreError if it may not be.

    What lies elsewhere must not make this machine open its own files, hence the rule for remote
    lists; http is left out because fetching what strangers name reaches into private networks.
    """
    if not path.strip() or any(ord(char) < 32 or "\ud800" <= char <= "\udfff" for char in path):
        raise ValueError("is no path")
    if "://" in path and path.partition("://")[0] not in _SCHEMES:
        raise ValueError(f"images are read from {', '.join(_SCHEMES)} only")
    if not _is_local(path):
        return path
    if "://" not in base:
        return str(_anchor(path, base))
    if path.startswith(("/", "~", "file://")) or ".." in path.split("/"):
        raise ValueError("a remote list may not name files of this machine or leave its folder")
    return f"{base}/{path}"


def _check_captions(entry: Entry, captions: tuple[str, ...] | None) -> None:
    if captions is None:
        return
    if len(captions) != len(entry.images):
        what = f"has {len(captions)} captions for {len(entry.images)} images"
        entry.error(what, "give one caption per image, in the same order, or none")
    for caption in captions:
        try:
            spec.check_template(caption, allowed=("{subject}", "{class}"), required="{subject}")
        except ValueError as exc:
            entry.error(f"captions: {exc}", "write {subject} where the subject is named")


def scan(folder: Path, class_noun: str | None = None) -> tuple[list[Entry], list[Problem]]:
    """List every sub-folder as a subject; see `dbray.manifest.scan`."""
    if (folder / "dataset" / CLASSES_FILE).is_file():
        folder = folder / "dataset"
    classes = _read_classes(folder / CLASSES_FILE)
    problems, entries = [], []
    visible = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    loose = [path.name for path in visible if _is_picture(path)]
    subfolders = [path for path in visible if path.is_dir()]
    if loose:
        severity = "warning" if subfolders else "error"
        what = f"has {len(loose)} images outside of any subject's folder ({loose[0]}, ...)"
        fix = "put the images of each subject into a sub-folder of its own"
        problems.append(Problem(severity, str(folder), what, fix))
    elif not subfolders:
        fix = "make one sub-folder per subject, with 3 to 6 photographs each"
        problems.append(Problem("error", str(folder), "has no sub-folders", fix))
    for name in sorted(set(classes) - {path.name for path in subfolders}):
        what, fix = f"lists {name!r}, which has no folder", "remove the line, or add the folder"
        problems.append(Problem("warning", str(folder / CLASSES_FILE), what, fix))
    for path in subfolders:
        entries.append(_entry_of_folder(path, classes.get(path.name, class_noun)))
    return entries, problems


def _entry_of_folder(folder: Path, class_noun: str | None) -> Entry:
    own = folder / CLASS_FILE
    notes = Entry(str(folder), spec.slug(folder.name))
    if own.is_file():
        try:
            class_noun = next(
                (line for line in texts.read_text(own).split("\n") if line.strip()), ""
            )
        except SpecError as exc:
            notes.problems += [dataclasses.replace(p, subject=notes.name) for p in exc.problems]
    found = list(_images_in(folder, notes))
    raw = {"id": notes.name, "images": found, "class_noun": class_noun}
    if class_noun is None:
        fix = f"write it into {own}, or give one for all with --class"
        notes.error("has no class noun", fix)
        if not found:
            notes.error(*_NO_IMAGES)
        return dataclasses.replace(notes, images=tuple(found))
    entry = _entry(raw, str(folder), _Origin(str(folder), "/", None))
    entry.problems[:0] = notes.problems
    return entry


def _read_classes(file: Path) -> dict[str, str]:
    """Read the dreambooth dataset's folder name -> class noun; empty if the file is missing."""
    if not file.is_file():
        return {}
    classes = {}
    for line in texts.read_text(file).split("\n"):
        if line.strip() == "Prompts":
            break
        name, comma, noun = line.partition(",")
        if comma and (name.strip(), noun.strip()) != ("subject_name", "class"):
            classes[name.strip()] = noun.strip()
    return classes


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()


def _holds_pictures(folder: Path) -> bool:
    try:
        return any(_is_picture(path) for path in folder.iterdir())
    except OSError:
        return False


def _images_in(folder: Path, entry: Entry) -> Iterator[str]:
    """Give the images directly in a folder, by name; note what looks like one but is not read."""
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as exc:
        entry.error(f"{folder} cannot be listed: {exc.strerror}", "check its access rights")
        return
    for path in paths:
        if _is_picture(path):
            yield str(path.resolve())
        elif path.suffix.lower() in _FOREIGN_SUFFIXES:
            entry.warn(f"{path} is left out", "convert it to PNG, JPEG or WebP to use it")
        elif path.is_dir() and _holds_pictures(path):
            entry.warn(f"{path} is not looked into", "move its images up to use them")
