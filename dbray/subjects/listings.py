"""Lists of subjects: a manifest, a folder, or the subjects themselves.

Owns which reader reads which source, and how a listed item becomes an entry. Lists are read to
their end despite errors. Does not open images: dbray.subjects.validation does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from dbray.errors import Problem, SpecError, StoreError, without_secrets
from dbray.spec.paths import foreign_form, is_address, is_folder
from dbray.spec.subject import Subject, subject_fields
from dbray.spec.text_files import Item, read_text
from dbray.storage import store
from dbray.subjects import captions, folders, places
from dbray.subjects.captions import caption_of, check_captions, is_metadata
from dbray.subjects.entries import NO_IMAGES, Entry
from dbray.subjects.files import READERS
from dbray.subjects.places import Origin

Source = str | Sequence[Subject] | Sequence[Item]
"""A manifest's path or URI, a folder, subjects, or the list in a job file."""


def parse(source: Source, class_noun: str | None, folder: str) -> tuple[list[Entry], list[Problem]]:
    """Read `source`; return its entries, and the problems of the list itself."""
    if not isinstance(source, str):
        origin = Origin(folder, class_noun)
        return [_entry(item, origin) for item in _items(source)], []
    name = without_secrets(source)
    try:
        local = places.local_path(source, folder) if places.is_local(source) else None
        if local is not None and is_folder(local):
            return folders.scan(local, class_noun)
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
    address, mark, query = source.partition("?") if local is None else (source, "", "")
    reader = READERS.get(PurePosixPath(address).suffix.lower())
    if local is None:
        _refuse_scheme(source, name)
    elif not local.exists():
        fix = "check the path, or make a manifest with 'dbray init'"
        raise SpecError.of(name, *(foreign_form(source) or ("does not exist", fix)))
    if reader is None:
        fix = "give a .jsonl, .yaml or .csv file, or a folder on this machine"
        raise SpecError.of(name, "is not a manifest", fix)
    if local is not None:
        text, base = read_text(local), str(local.parent)
    else:
        text, base = store.read_uri(source).decode("utf-8-sig"), address.rpartition("/")[0]
    origin = Origin(base, class_noun, mark + query)
    items = list(reader(text, name))
    if any(isinstance(one, Item) and is_metadata(one) for one in items):
        return _entries_of_metadata(items, local, name, class_noun)
    return [one if isinstance(one, Entry) else _entry(one, origin) for one in items]


def _entries_of_metadata(
    rows: Sequence[Item | Entry], file: Path | None, name: str, class_noun: str | None
) -> list[Entry]:
    """Make entries from a Hugging Face metadata file: rows are images, folders are subjects."""
    if file is None:
        fix = "copy it and its images to this machine, or write a manifest with ids"
        raise SpecError.of(name, "is a metadata file, which is read on this machine only", fix)
    folders_of: dict[Path, dict[str, str | None]] = {}
    nouns: dict[Path, str] = {}
    for row in rows:
        if isinstance(row, Entry) or not is_metadata(row):
            continue
        path = file.parent / row.value["file_name"]
        folders_of.setdefault(path.parent, {})[path.name] = caption_of(row.value)
        if isinstance(noun := row.value.get("class_noun"), str):
            nouns.setdefault(path.parent, noun)
    broken = [row if isinstance(row, Entry) else _not_a_row(row) for row in rows
              if isinstance(row, Entry) or not is_metadata(row)]  # fmt: skip
    return broken + [
        folders.entry_of_folder(folder, nouns.get(folder, class_noun), listed, only_listed=True)
        for folder, listed in folders_of.items()
    ]


def _not_a_row(item: Item) -> Entry:
    entry = Entry(item.where)
    entry.error("does not name an image", "give it a file_name, as in the other rows, or remove it")
    return entry


def _refuse_scheme(source: str, name: str) -> None:
    if source.partition("://")[0] not in places.SCHEMES:
        fix = "copy it to this machine, or to s3:// or gs://"
        raise SpecError.of(
            name, f"cannot be read: its scheme is not one of {', '.join(places.SCHEMES)}", fix
        )


def _entry(item: Item, origin: Origin) -> Entry:
    """Make an entry from one item; a mistake in one field does not hide those in others."""
    entry = Entry(item.where)
    try:
        fields = subject_fields(item)
    except SpecError as exc:
        entry.problems += exc.problems
        return entry
    if isinstance(fields.get("id"), str):
        entry.name = fields["id"]
    if fields.get("class_noun") is None and origin.class_noun is not None:
        fields["class_noun"] = origin.class_noun
    given, found = fields.get("images"), []
    if isinstance(given, list | tuple):
        found = list(_find_images(entry, given, origin))
        entry.images = tuple(address for _, address in found)
        if not given:
            entry.error(*NO_IMAGES)
    _use_sidecars(entry, fields, found)
    entry.make_subject(dataclasses.replace(item, value=fields))
    check_captions(entry, fields.get("captions"))
    return entry


def _use_sidecars(
    entry: Entry, fields: dict[str, Any], found: Sequence[tuple[Path | None, str]]
) -> None:
    """Use the sidecar captions of a subject without captions; all photographs must be local."""
    files = [path for path, _ in found if path is not None]
    noun, identifier = fields.get("class_noun"), fields.get("identifier")
    if fields.get("captions") is None and len(files) == len(found) and isinstance(noun, str):
        listed: dict[str, str] = {}
        for folder in {path.parent for path in files}:
            listed |= captions.in_folder(folder, entry)
        written = captions.of_photographs(files, entry, listed)
        named = identifier if isinstance(identifier, str) else None
        fields["captions"] = captions.with_placeholders(written, noun, named, entry)


def _find_images(
    entry: Entry, given: Iterable[Any], origin: Origin
) -> Iterator[tuple[Path | None, str]]:
    """Yield absolute paths and URIs; the images of a folder replace the folder.

    Each comes with its local path before links are followed; None for a URI.
    """
    for path in given:
        if not is_address(path):
            continue  # Subject's validator reports it
        try:
            located = places.locate(path, origin)
        except (ValueError, StoreError) as exc:
            entry.error(f"{path!r}: {exc}", "give a path, or an s3:// or gs:// address")
            continue
        if "://" in located:
            yield None, located
        elif not is_folder(located):
            named = places.named(path, origin)
            if reason := places.why_missing(named):
                entry.error(*reason)
            else:
                yield named, located
        elif (paths := folders.visible(Path(located), entry)) is None:
            continue
        elif found := list(folders.images_in(paths, entry)):
            yield from found
        else:
            entry.error(f"{located} holds no images", "put PNG, JPEG or WebP files into it")
