"""Folders of photographs: of one subject, or with one sub-folder per subject.

Understands the layouts of github.com/google/dreambooth and of kohya's trainers.

Owns which files of a folder are skipped, and which problems are reported. Opens a file only if its
name does not show whether it is an image.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from dbray.errors import Problem, SpecError, StoreError
from dbray.spec.canon import UNTOUCHED, slug
from dbray.spec.paths import is_address, is_folder
from dbray.spec.text_files import Item, read_text
from dbray.storage.local import open_regular
from dbray.subjects import captions, images, places
from dbray.subjects.captions import check_captions
from dbray.subjects.entries import NO_IMAGES, Entry

CLASS_FILE, DESCRIPTION_FILE = "class.txt", "description.txt"
# The file of github.com/google/dreambooth: "subject_name,class" lines under the heading "Classes",
# then lists of prompts under the heading "Prompts".
CLASSES_FILE = "prompts_and_classes.txt"

_RENAME = "rename the folder (ids come from folder names), or write a manifest with ids"
# Files that operating systems and network drives create, besides names that begin with a dot.
_JUNK = {
    "__MACOSX",
    "@eaDir",
    "#recycle",
    "lost+found",
    "$RECYCLE.BIN",
    "System Volume Information",
}
# kohya's trainers: "10_sks dog" holds photographs of "sks dog", each seen 10 times per epoch.
_KOHYA_NAME = re.compile(r"\d+_(?P<identifier>\S+) (?P<noun>\S.*)")


def scan(folder: Path, class_noun: str | None = None) -> tuple[list[Entry], list[Problem]]:
    """List every sub-folder as a subject; see `dbray.subjects.validation.scan`."""
    if (folder / "dataset" / CLASSES_FILE).is_file():
        folder = folder / "dataset"
    classes, problems = _read_classes(folder / CLASSES_FILE)
    visible = _visible_in(folder)
    loose = [path.name for path in visible if _is_picture(path)]
    subfolders = [path for path in visible if is_folder(path)]
    full = [path for path in subfolders if _holds_pictures(path)]
    if loose and not full:
        return [entry_of_folder(folder, class_noun)], problems
    problems += _misplaced(folder, loose, subfolders, full)
    for name in sorted(set(classes) - {path.name for path in subfolders}):
        what, fix = f"lists {name!r}, which has no folder", "remove the line, or add the folder"
        problems.append(Problem("warning", str(folder / CLASSES_FILE), what, fix))
    if any(problem.severity == "error" for problem in problems):
        return [], problems
    listed, found = captions.metadata_of(folder)
    problems += [*found, *_repeats(subfolders), *_same_names(subfolders)]
    return [
        entry_of_folder(path, classes.get(path.name, class_noun), captions.below(listed, path.name))
        for path in subfolders
    ], problems


def _misplaced(
    folder: Path, loose: list[str], subfolders: list[Path], full: list[Path]
) -> Iterator[Problem]:
    """Report images outside of any subject's folder."""
    nested = [path for path in subfolders if any(map(_holds_pictures, _folders_in(path)))]
    if loose:
        what = f"has {len(loose)} images outside of any subject's folder ({loose[0]}, ...)"
        fix = "put the images of each subject into a sub-folder of its own"
        yield Problem("warning", str(folder), what, fix)
    elif not subfolders:
        fix = "make one sub-folder per subject, with 3 to 6 photographs each"
        yield Problem("error", str(folder), "has no sub-folders and no images", fix)
    elif nested and not full:
        what = f"the folders with images are one level down, in {nested[0]}"
        yield Problem("error", str(folder), what, f"give {nested[0]} instead")


def _repeats(subfolders: Iterable[Path]) -> Iterator[Problem]:
    """Report that kohya's repeats have no effect."""
    names = [path.name for path in subfolders if _kohya_name(path)]
    if names:
        what = f"the repeats in {len(names)} folder names ({names[0]!r}, ...) have no effect"
        fix = "set recipe.steps, the number of steps of every subject"
        yield Problem("warning", names[0], what, fix)


def _same_names(subfolders: Iterable[Path]) -> Iterator[Problem]:
    """Report folders whose names look the same: they are two subjects with two ids."""
    first: dict[str, Path] = {}
    for path in subfolders:
        earlier = first.setdefault(unicodedata.normalize("NFC", path.name), path)
        if earlier is not path:
            what = f"two folders are named {path.name!r}, and differ only in Unicode form"
            fix = f"merge the two, or rename one: their ids are {slug(earlier.name)!r} and "
            yield Problem("warning", str(path), what, f"{fix}{slug(path.name)!r}")


def entry_of_folder(
    folder: Path,
    class_noun: str | None,
    listed: Mapping[str, str | None] | None = None,
    only_listed: bool = False,
) -> Entry:
    """Make an entry from a folder of photographs of one subject.

    Args:
        folder: its name gives the id, unless it is one of kohya's.
        class_noun: used if the folder has none.
        listed: captions by file name, from a metadata file elsewhere.
        only_listed: leave other files out.
    """
    entry = Entry(str(folder), slug(folder.name) or None, to_rename=_RENAME)
    paths = visible(folder, entry)
    if paths is None:
        return entry
    identifier, noun = _names_in(folder, paths, class_noun, entry)
    if only_listed:
        for name in sorted(set(listed or ()) - {path.name for path in paths}):
            entry.error(f"{folder / name} does not exist", "remove its row, or add the file")
        paths = [path for path in paths if path.name in (listed or {})]
    found = list(images_in(paths, entry))
    entry.images = tuple(address for _, address in found)
    if not found:
        entry.error(*NO_IMAGES)
    if entry.name is None:
        entry.error("has a name without letters a to z and digits, so it gives no id", _RENAME)
    elif entry.name == UNTOUCHED:
        entry.error(f"gives the id {entry.name!r}, which names the untouched base", _RENAME)
    elif noun is not None:
        rows = {} if only_listed else captions.in_folder(folder, entry)
        written = captions.of_photographs(
            [path for path, _ in found], entry, {**(listed or {}), **rows}
        )
        fields = {"id": entry.name, "class_noun": noun, "images": entry.images}
        fields["identifier"] = identifier
        fields["description"] = _description_in(paths, entry)
        fields["captions"] = captions.with_placeholders(written, noun, identifier, entry)
        entry.make_subject(Item(fields, entry.where))
        check_captions(entry, fields["captions"])
    return entry


def _kohya_name(folder: Path) -> re.Match[str] | None:
    """Match a folder's name in kohya's form; None if the folder has a class file."""
    return None if (folder / CLASS_FILE).exists() else _KOHYA_NAME.fullmatch(folder.name)


def _names_in(
    folder: Path, paths: Iterable[Path], default: str | None, entry: Entry
) -> tuple[str | None, str | None]:
    """Return the identifier and class noun of a folder, else the default noun.

    An error is noted if there is no class noun.
    """
    if kohya := _kohya_name(folder):
        entry.name = slug(f"{kohya['identifier']} {kohya['noun']}") or None
        return kohya["identifier"], kohya["noun"]
    return None, _class_noun_in(paths, default, entry)


def _class_noun_in(paths: Iterable[Path], default: str | None, entry: Entry) -> str | None:
    own = next((path for path in paths if path.name == CLASS_FILE), None)
    if own is None:
        if default is None:
            fix = f"write it into {entry.where}/{CLASS_FILE}, or give 'dbray init' one for all "
            entry.error("has no class noun", fix + "with --class")
        return default
    try:
        lines = read_text(own).split("\n")
    except SpecError as exc:
        entry.add(exc.problems)
        return None
    noun = next((line for line in lines if line.strip()), None)
    if noun is None:
        fix = "write the class noun into it, such as 'dog'"
        entry.problems.append(Problem("error", str(own), "is empty", fix, entry.name))
    return noun


def _description_in(paths: Iterable[Path], entry: Entry) -> str | None:
    own = next((path for path in paths if path.name == DESCRIPTION_FILE), None)
    try:
        return None if own is None else " ".join(read_text(own).split()) or None
    except SpecError as exc:
        entry.add(exc.problems)
        return None


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
    """List a folder by name, without files that systems create. Raises OSError."""
    names = (path.name for path in folder.iterdir())
    return [folder / name for name in sorted(names)
            if not name.startswith(".") and name not in _JUNK]  # fmt: skip


def _folders_in(folder: Path) -> list[Path]:
    with suppress(OSError):
        return [path for path in _visible_in(folder) if is_folder(path)]
    return []


def visible(folder: Path, entry: Entry) -> list[Path] | None:
    """List a subject's folder; None, with an error noted, if it cannot be listed."""
    try:
        return _visible_in(folder)
    except OSError as exc:
        entry.error(f"{folder} cannot be listed: {exc.strerror}", "check its access rights")
        return None


def images_in(paths: Iterable[Path], entry: Entry) -> Iterator[tuple[Path, str]]:
    """Yield the images among some paths, each with the path of the file that a link points to.

    Image files that are not read are noted.
    """
    for path in paths:
        if is_folder(path):
            if _holds_pictures(path):
                entry.warn(f"{path} is not searched", "move its images up to use them")
        elif (kind := _format_of(path)) in images.FORMATS:
            if address := _resolve(path, entry):
                yield path, address
        elif kind is not None:
            fix = "convert it to PNG, JPEG or WebP to use it"
            entry.warn(f"{path} is left out: it is a {kind} file", fix)


def _resolve(path: Path, entry: Entry) -> str | None:
    """Return the file behind a path, if it exists and its name can be written in a manifest."""
    real = os.path.realpath(path)
    if not is_address(real):
        entry.error(
            f"{real!r} is a name that a manifest cannot contain", "rename it, in plain UTF-8"
        )
    elif reason := places.why_missing(path):
        entry.error(*reason)
    else:
        return real
    return None


def _is_picture(path: Path) -> bool:
    """Return whether this is a file that will be decoded."""
    return not is_folder(path) and _format_of(path) in images.FORMATS


def _format_of(path: Path) -> str | None:
    """Return the format of a file by its name, else by its first bytes."""
    if known := images.FORMAT_OF_SUFFIX.get(path.suffix.lower()):
        return known
    with suppress(OSError, StoreError), open_regular(path) as file:
        return images.format_of(file.read(images.BEGINNING_BYTES))
    return None


def _holds_pictures(folder: Path) -> bool:
    try:
        return any(_is_picture(path) for path in _visible_in(folder))
    except OSError:
        return False
