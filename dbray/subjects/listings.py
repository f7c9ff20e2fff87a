"""What users give as a list of subjects: a manifest, a folder, or the subjects themselves.

Owns which reader takes which source, and how a listed item becomes an entry. Lists are read to
their end whatever is wrong in them. Opens no image: dbray.subjects.validation looks at those.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from dbray.errors import Problem, SpecError, StoreError, without_secrets
from dbray.spec.paths import is_address, is_folder
from dbray.spec.prompts import check_template
from dbray.spec.subject import Subject, subject_fields
from dbray.spec.text_files import Item, read_text
from dbray.storage import store
from dbray.subjects import folders, places
from dbray.subjects.entries import NO_IMAGES, Entry
from dbray.subjects.files import READERS
from dbray.subjects.places import Origin

Source = str | Sequence[Subject] | Sequence[Item]
"""A manifest's path or URI, a folder, subjects, or the list in a job file."""


def parse(source: Source, class_noun: str | None, folder: str) -> tuple[list[Entry], list[Problem]]:
    """Read what `source` lists; return its entries, and the problems of the list itself."""
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
        raise SpecError.of(name, "does not exist", fix)
    if reader is None:
        fix = "give a .jsonl, .yaml or .csv file, or a folder on this machine"
        raise SpecError.of(name, "is not a manifest", fix)
    if local is not None:
        text, base = read_text(local), str(local.parent)
    else:
        text, base = store.read_uri(source).decode("utf-8-sig"), address.rpartition("/")[0]
    origin = Origin(base, class_noun, mark + query)
    return [one if isinstance(one, Entry) else _entry(one, origin) for one in reader(text, name)]


def _refuse_scheme(source: str, name: str) -> None:
    if source.partition("://")[0] not in places.SCHEMES:
        fix = "copy it to this machine, or to s3:// or gs://"
        raise SpecError.of(
            name, f"cannot be read: its scheme is not one of {', '.join(places.SCHEMES)}", fix
        )


def _entry(item: Item, origin: Origin) -> Entry:
    """Make an entry of one item; a mistake in one field does not hide those in others."""
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
    given = fields.get("images")
    if isinstance(given, list | tuple):
        entry.images = tuple(_find_images(entry, given, origin))
        if not given:
            entry.error(*NO_IMAGES)
    entry.make_subject(dataclasses.replace(item, value=fields))
    _check_captions(entry, fields.get("captions"))
    return entry


def _find_images(entry: Entry, given: Iterable[Any], origin: Origin) -> Iterator[str]:
    """Make paths absolute, and replace a folder by its images."""
    for path in given:
        if not is_address(path):
            continue  # the model's own check names it
        try:
            located = places.locate(path, origin)
        except (ValueError, StoreError) as exc:
            entry.error(f"{path!r}: {exc}", "give a path, or an s3:// or gs:// address")
            continue
        if "://" in located or not is_folder(located):
            yield located
        elif (paths := folders.visible(Path(located), entry)) is None:
            continue
        elif found := list(folders.images_in(paths, entry)):
            yield from found
        else:
            entry.error(f"{located} holds no images", "put PNG, JPEG or WebP files into it")


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
            check_template(caption, allowed=("{subject}", "{class}"), required="{subject}")
        except ValueError as exc:
            entry.error(f"captions: {exc}", "write {subject} where the subject is named")
