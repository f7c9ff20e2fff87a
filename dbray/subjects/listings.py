"""How users list subjects: JSONL, YAML and CSV files, folders, the google/dreambooth layout.

Owns the formats and the meaning of relative paths. Lists are read to their end whatever is wrong in
them; each finding stays with its entry. Opens no image: dbray.subjects.validation looks at those.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from dbray.errors import Problem, SpecError, StoreError, without_secrets
from dbray.spec import findings, sections
from dbray.spec.findings import Item
from dbray.spec.sections import Subject, is_folder
from dbray.storage import disks, store
from dbray.subjects import images

Source = str | Sequence[Subject] | Sequence[Item]
"""A manifest's path or URI, a folder, subjects, or the list in a job file."""
CLASS_FILE = "class.txt"
# The file of github.com/google/dreambooth: "subject_name,class" lines under the heading "Classes",
# then lists of prompts under the heading "Prompts".
CLASSES_FILE = "prompts_and_classes.txt"

_NO_IMAGES = ("has no images", "give 3 to 6 photographs of it")
_SCHEMES = ("file", "s3", "gs")
_COLUMNS = ("id", "class_noun", "images", "identifier", "captions")
_RENAME = "rename the folder (ids come from folders' names), or write a manifest with ids"


@dataclass(slots=True)
class Entry:
    """One listed subject, as far as it could be read; `images` are absolute paths or URIs."""

    where: str
    name: str | None = None
    subject: Subject | None = None
    images: tuple[str, ...] = ()
    problems: list[Problem] = field(default_factory=list)
    to_rename: str = "give one of them another id, or remove it"
    """What to do if the id is another subject's too."""

    def error(self, what: str, fix: str) -> None:
        """Note what makes the subject unusable."""
        self.problems.append(Problem("error", self.where, what, fix, self.name))

    def warn(self, what: str, fix: str) -> None:
        """Note what the user should look at."""
        self.problems.append(Problem("warning", self.where, what, fix, self.name))


@dataclass(frozen=True, slots=True)
class _Origin:
    """The list being read: what its relative paths start from, and the default class noun.

    `options` is the query of a remote list's address, from its '?' on; its relative paths share it.
    """

    base: str
    class_noun: str | None
    options: str = ""


def parse(source: Source, class_noun: str | None, folder: str) -> tuple[list[Entry], list[Problem]]:
    """Read what `source` lists; return its entries, and the problems that belong to none."""
    if not isinstance(source, str):
        origin = _Origin(folder, class_noun)
        return [_entry(item, origin) for item in _items(source)], []
    name = without_secrets(source)
    try:
        local = _anchor(source, folder) if _is_local(source) else None
        if local is not None and is_folder(local):
            return scan(local, class_noun)
        return _read_file(source, name, local, class_noun), []
    except SpecError as exc:
        return [], list(exc.problems)
    except StoreError as exc:
        return [], [Problem("error", name, str(exc), "check the path")]
    except (OSError, ValueError) as exc:
        return [], [Problem("error", name, f"cannot be read: {exc}", "check the path")]


def _items(source: Sequence[Subject] | Sequence[Item]) -> Iterator[Item]:
    for index, one in enumerate(source):
        yield one if isinstance(one, Item) else Item(one.model_dump(), f"subjects[{index}]")


def _read_file(source: str, name: str, local: Path | None, class_noun: str | None) -> list[Entry]:
    readers = {".jsonl": _read_jsonl, ".ndjson": _read_jsonl, ".csv": _read_csv}
    readers |= {".yaml": _read_yaml, ".yml": _read_yaml}
    address, mark, query = source.partition("?") if local is None else (source, "", "")
    reader = readers.get(PurePosixPath(address).suffix.lower())
    if local is None:
        _refuse_scheme(source, name)
    elif not local.exists():
        fix = "check the path, or make a manifest with 'dbray init'"
        raise SpecError.of(name, "does not exist", fix)
    if reader is None:
        fix = "give a .jsonl, .yaml or .csv file, or a folder on this machine"
        raise SpecError.of(name, "is no manifest", fix)
    if local is not None:
        text, base = findings.read_text(local), str(local.parent)
    else:
        text, base = store.read_uri(source).decode("utf-8-sig"), address.rpartition("/")[0]
    origin = _Origin(base, class_noun, mark + query)
    return [one if isinstance(one, Entry) else _entry(one, origin) for one in reader(text, name)]


def _refuse_scheme(source: str, name: str) -> None:
    if source.partition("://")[0] not in _SCHEMES:
        fix = "copy it to this machine, or to s3:// or gs://"
        raise SpecError.of(name, f"is at none of {', '.join(_SCHEMES)}", fix)


def _is_local(path: str) -> bool:
    return "://" not in path or path.startswith("file://")


def _anchor(path: str, folder: str) -> Path:
    """Make a local path absolute. Raises StoreError or ValueError."""
    return disks.local_path(sections.anchor(path, Path(folder))) or Path(path)


def _refused(name: str, line: int, what: str, fix: str, subject: str | None = None) -> Entry:
    """Note that a line cannot be taken apart."""
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
    data, lines = findings.parse_yaml(text, name)
    start = ()
    if isinstance(data, dict) and set(data) == {"subjects"}:
        data, start = data["subjects"], ("subjects",)
    if not isinstance(data, list):
        fix = "write one '- id: ...' item per subject"
        raise SpecError.of(name, "is not a list of subjects", fix)
    return findings.items_of(data, name, lines, start)


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
    """Give every row that is not empty, or what is wrong with it, with the line it begins in."""
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


def _entry(item: Item, origin: _Origin) -> Entry:
    """Make an entry of one item; what of it is wrong does not hide the rest."""
    entry = Entry(item.where)
    try:
        fields = sections.subject_fields(item)
    except SpecError as exc:
        entry.problems += exc.problems
        return entry
    if isinstance(fields.get("id"), str):
        entry.name = fields["id"]
    if fields.get("class_noun") is None and origin.class_noun is not None:
        fields["class_noun"] = origin.class_noun
    given = fields.get("images")
    if isinstance(given, list | tuple):
        entry.images = tuple(_find_images(entry, given, origin))
        if not given:
            entry.error(*_NO_IMAGES)
    _make_subject(entry, fields, item)
    _check_captions(entry, fields.get("captions"))
    return entry


def _make_subject(entry: Entry, fields: dict[str, Any], item: Item) -> None:
    try:
        subject = sections.make_subject(fields, item)
    except SpecError as exc:
        entry.problems += exc.problems
    else:
        entry.subject = subject.model_copy(update={"images": entry.images})


def _find_images(entry: Entry, given: Iterable[Any], origin: _Origin) -> Iterator[str]:
    """Make paths absolute, and put the images of a folder in its place."""
    for path in given:
        if not sections.is_address(path):
            continue  # the model's own check names it
        try:
            located = _locate(path, origin)
        except (ValueError, StoreError) as exc:
            entry.error(f"{path!r}: {exc}", "give a path, or an s3:// or gs:// address")
            continue
        if "://" in located or not is_folder(located):
            yield located
        elif (paths := _visible(Path(located), entry)) is None:
            continue
        elif found := list(_images_in(paths, entry)):
            yield from found
        else:
            entry.error(f"{located} holds no images", "put PNG, JPEG or WebP files into it")


def _locate(path: str, origin: _Origin) -> str:
    """Return an absolute local path or a URI. Raises ValueError or StoreError if it may not be.

    http is left out because fetching what strangers name reaches into private networks.
    """
    if "://" in path and path.partition("://")[0] not in _SCHEMES:
        raise ValueError(f"images are read from {', '.join(_SCHEMES)} only")
    if "://" in origin.base:
        return _locate_from_afar(path, origin)
    return str(_anchor(path, origin.base)) if _is_local(path) else path


def _locate_from_afar(path: str, origin: _Origin) -> str:
    """Return the URI of what a remote list names. Raises ValueError if it may not name that.

    What lies elsewhere must not make this machine open its own files, nor send signed requests to
    an endpoint of its choice.
    """
    if _is_local(path) and (path.startswith(("/", "~", "file://")) or ".." in path.split("/")):
        raise ValueError("a remote list may not name files of this machine or leave its folder")
    place, mark, query = path.partition("?")
    if "@" in urlsplit(place).netloc or mark + query not in ("", origin.options):
        raise ValueError("a remote list may not name credentials, nor options other than its own")
    return f"{origin.base}/{place}{origin.options}" if _is_local(path) else path


def _check_captions(entry: Entry, captions: Any) -> None:
    if not isinstance(captions, list | tuple):
        return
    if entry.images and len(captions) != len(entry.images):
        what = f"has {len(captions)} captions for {len(entry.images)} images"
        entry.error(what, "give one caption per image, in the same order, or none")
    for caption in captions:
        if not isinstance(caption, str):
            continue  # the model's own check names it
        try:
            sections.check_template(caption, allowed=("{subject}", "{class}"), required="{subject}")
        except ValueError as exc:
            entry.error(f"captions: {exc}", "write {subject} where the subject is named")


def scan(folder: Path, class_noun: str | None = None) -> tuple[list[Entry], list[Problem]]:
    """List every sub-folder as a subject; see `dbray.subjects.validation.scan`."""
    if (folder / "dataset" / CLASSES_FILE).is_file():
        folder = folder / "dataset"
    classes, problems = _read_classes(folder / CLASSES_FILE)
    visible = _visible_in(folder)
    loose = [path.name for path in visible if _is_picture(path)]
    subfolders = [path for path in visible if is_folder(path)]
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
    entries = [_entry_of_folder(path, classes.get(path.name, class_noun)) for path in subfolders]
    return entries, problems


def _entry_of_folder(folder: Path, class_noun: str | None) -> Entry:
    entry = Entry(str(folder), sections.slug(folder.name) or None, to_rename=_RENAME)
    paths = _visible(folder, entry)
    if paths is None:
        return entry
    noun = _class_noun_in(paths, class_noun, entry)
    entry.images = tuple(_images_in(paths, entry))
    if not entry.images:
        entry.error(*_NO_IMAGES)
    if entry.name is None:
        entry.error("has a name without letters a to z and digits, so it gives no id", _RENAME)
    elif entry.name == sections.UNTOUCHED:
        entry.error(f"gives the id {entry.name!r}, which names the untouched base", _RENAME)
    elif noun is not None:
        fields = {"id": entry.name, "class_noun": noun, "images": entry.images}
        _make_subject(entry, fields, Item(fields, entry.where))
    return entry


def _class_noun_in(paths: Iterable[Path], otherwise: str | None, entry: Entry) -> str | None:
    """The class noun that a subject's folder gives, else another; if there is none, say so."""
    own = next((path for path in paths if path.name == CLASS_FILE), None)
    if own is None:
        if otherwise is None:
            fix = f"write it into {entry.where}/{CLASS_FILE}, or give 'dbray init' one for all "
            entry.error("has no class noun", fix + "with --class")
        return otherwise
    try:
        lines = findings.read_text(own).split("\n")
    except SpecError as exc:
        entry.problems += [dataclasses.replace(p, subject=entry.name) for p in exc.problems]
        return None
    noun = next((line for line in lines if line.strip()), None)
    if noun is None:
        fix = "write the class noun into it, such as 'dog'"
        entry.problems.append(Problem("error", str(own), "is empty", fix, entry.name))
    return noun


def _read_classes(file: Path) -> tuple[dict[str, str], list[Problem]]:
    """Read the dreambooth dataset's folder name -> class noun; empty if the file is missing."""
    if not file.is_file():
        return {}, []
    try:
        text = findings.read_text(file)
    except SpecError as exc:
        return {}, list(exc.problems)
    classes = {}
    for line in text.split("\n"):
        if line.strip() == "Prompts":
            break
        name, comma, noun = line.partition(",")
        if comma and (name.strip(), noun.strip()) != ("subject_name", "class"):
            classes[name.strip()] = noun.strip()
    return classes, []


def _visible_in(folder: Path) -> list[Path]:
    """What lies in a folder, by name, without what systems put there. Raises OSError."""
    names = (path.name for path in folder.iterdir())
    return [folder / name for name in sorted(names)
            if not name.startswith(".") and name != "__MACOSX"]  # fmt: skip


def _visible(folder: Path, entry: Entry) -> list[Path] | None:
    """What lies in a folder of a subject; None, and an error, if it cannot be listed."""
    try:
        return _visible_in(folder)
    except OSError as exc:
        entry.error(f"{folder} cannot be listed: {exc.strerror}", "check its access rights")
        return None


def _images_in(paths: Iterable[Path], entry: Entry) -> Iterator[str]:
    """Give the images among some paths; note what looks like one but is not read."""
    for path in paths:
        if is_folder(path):
            if _holds_pictures(path):
                entry.warn(f"{path} is not looked into", "move its images up to use them")
        elif (kind := _format_of(path)) in images.FORMATS:
            yield from _resolve(path, entry)
        elif kind is not None:
            fix = "convert it to PNG, JPEG or WebP to use it"
            entry.warn(f"{path} is left out: it is a {kind} file", fix)


def _resolve(path: Path, entry: Entry) -> Iterator[str]:
    """Give the file behind a path, if its name can be written down."""
    real = os.path.realpath(path)
    if sections.is_address(real):
        yield real
    else:
        entry.error(f"{real!r} is a name that no manifest can hold", "rename it, in plain UTF-8")


def _is_picture(path: Path) -> bool:
    """Whether this is a file that is offered to the decoder."""
    return not is_folder(path) and _format_of(path) in images.FORMATS


def _format_of(path: Path) -> str | None:
    """The format of a file by its name, else by how it begins."""
    if known := images.FORMAT_OF_SUFFIX.get(path.suffix.lower()):
        return known
    with suppress(OSError, StoreError), disks.open_regular(path) as file:
        return images.format_of(file.read(images.BEGINNING_BYTES))
    return None


def _holds_pictures(folder: Path) -> bool:
    try:
        return any(_is_picture(path) for path in folder.iterdir())
    except OSError:
        return False
