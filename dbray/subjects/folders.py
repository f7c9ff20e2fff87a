"""Folders of photographs: one folder per subject, or the layout of github.com/google/dreambooth.

Owns what is passed over in a folder, and what is reported of it. Opens a file only where its name
does not say whether it is an image.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from dbray.errors import Problem, SpecError, StoreError
from dbray.spec.canon import UNTOUCHED, slug
from dbray.spec.paths import is_address, is_folder
from dbray.spec.text_files import Item, read_text
from dbray.storage.local import open_regular
from dbray.subjects import images
from dbray.subjects.entries import NO_IMAGES, Entry

CLASS_FILE = "class.txt"
# The file of github.com/google/dreambooth: "subject_name,class" lines under the heading "Classes",
# then lists of prompts under the heading "Prompts".
CLASSES_FILE = "prompts_and_classes.txt"

_RENAME = "rename the folder (ids come from folder names), or write a manifest with ids"


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
    entry = Entry(str(folder), slug(folder.name) or None, to_rename=_RENAME)
    paths = visible(folder, entry)
    if paths is None:
        return entry
    noun = _class_noun_in(paths, class_noun, entry)
    entry.images = tuple(images_in(paths, entry))
    if not entry.images:
        entry.error(*NO_IMAGES)
    if entry.name is None:
        entry.error("has a name without letters a to z and digits, so it gives no id", _RENAME)
    elif entry.name == UNTOUCHED:
        entry.error(f"gives the id {entry.name!r}, which names the untouched base", _RENAME)
    elif noun is not None:
        fields = {"id": entry.name, "class_noun": noun, "images": entry.images}
        entry.make_subject(Item(fields, entry.where))
    return entry


def _class_noun_in(paths: Iterable[Path], default: str | None, entry: Entry) -> str | None:
    """The class noun in a subject's folder, else the default; without either, an error is noted."""
    own = next((path for path in paths if path.name == CLASS_FILE), None)
    if own is None:
        if default is None:
            fix = f"write it into {entry.where}/{CLASS_FILE}, or give 'dbray init' one for all "
            entry.error("has no class noun", fix + "with --class")
        return default
    try:
        lines = read_text(own).split("\n")
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
        text = read_text(file)
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
    """What is in a folder, by name, without what systems put there. Raises OSError."""
    names = (path.name for path in folder.iterdir())
    return [folder / name for name in sorted(names)
            if not name.startswith(".") and name != "__MACOSX"]  # fmt: skip


def visible(folder: Path, entry: Entry) -> list[Path] | None:
    """What is in a subject's folder; None, with an error noted, if it cannot be listed."""
    try:
        return _visible_in(folder)
    except OSError as exc:
        entry.error(f"{folder} cannot be listed: {exc.strerror}", "check its access rights")
        return None


def images_in(paths: Iterable[Path], entry: Entry) -> Iterator[str]:
    """Yield the images among some paths; note what looks like one but is not read."""
    for path in paths:
        if is_folder(path):
            if _holds_pictures(path):
                entry.warn(f"{path} is not searched", "move its images up to use them")
        elif (kind := _format_of(path)) in images.FORMATS:
            yield from _resolve(path, entry)
        elif kind is not None:
            fix = "convert it to PNG, JPEG or WebP to use it"
            entry.warn(f"{path} is left out: it is a {kind} file", fix)


def _resolve(path: Path, entry: Entry) -> Iterator[str]:
    """Yield the file behind a path, if its name can be written in a manifest."""
    real = os.path.realpath(path)
    if is_address(real):
        yield real
    else:
        entry.error(f"{real!r} is a name that a manifest cannot hold", "rename it, in plain UTF-8")


def _is_picture(path: Path) -> bool:
    """Whether this is a file that will be decoded."""
    return not is_folder(path) and _format_of(path) in images.FORMATS


def _format_of(path: Path) -> str | None:
    """The format of a file by its name, else by how it begins."""
    if known := images.FORMAT_OF_SUFFIX.get(path.suffix.lower()):
        return known
    with suppress(OSError, StoreError), open_regular(path) as file:
        return images.format_of(file.read(images.BEGINNING_BYTES))
    return None


def _holds_pictures(folder: Path) -> bool:
    try:
        return any(_is_picture(path) for path in folder.iterdir())
    except OSError:
        return False
