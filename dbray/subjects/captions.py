"""Captions next to photographs: `0.txt` next to `0.png`, or a metadata.jsonl in the folder.

Other trainers write captions in plain words ("a photo of sks dog asleep"). In dbray's captions,
{subject} names the subject, because its identifier is chosen later. Owns that translation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dbray.errors import Problem, SpecError
from dbray.spec.prompts import NO_NOUN, check_subject_prompt
from dbray.spec.text_files import Item, read_text
from dbray.subjects.entries import Entry
from dbray.subjects.files import READERS

SIDECAR_SUFFIXES = (".txt", ".caption")
METADATA_FILES = ("metadata.jsonl", "metadata.csv")
"""The files of Hugging Face's "imagefolder" data sets."""
CAPTION_KEYS = ("text", "caption", "prompt")
PLAIN = "a {subject}"


def of_photographs(
    photographs: Sequence[Path], entry: Entry, listed: Mapping[str, str | None]
) -> list[str | None]:
    """Return each photograph's original caption; None if it has none.

    A sidecar file has priority over the caption `listed` by file name in a metadata file.
    """
    return [_sidecar_of(path, entry) or listed.get(path.name) for path in photographs]


def in_folder(folder: Path, entry: Entry) -> dict[str, str]:
    """Return captions by file name from the metadata file of a subject's folder; note problems."""
    found, problems = metadata_of(folder)
    entry.add(problems)
    return found


def _sidecar_of(photograph: Path, entry: Entry) -> str | None:
    for suffix in SIDECAR_SUFFIXES:
        file = photograph.with_suffix(suffix)
        if file.name not in ("class.txt", "description.txt") and file.is_file():
            try:
                return " ".join(read_text(file).split()) or None
            except SpecError as exc:
                entry.add(exc.problems)
    return None


def metadata_of(folder: Path) -> tuple[dict[str, str], list[Problem]]:
    """Read captions by file name, relative to a folder, from its metadata file if it has one."""
    file = next((folder / name for name in METADATA_FILES if (folder / name).is_file()), None)
    if file is None:
        return {}, []
    captions, problems = {}, []
    try:
        for row in READERS[file.suffix](read_text(file), str(file)):
            if isinstance(row, Entry):
                problems += row.problems
            elif is_metadata(row) and (caption := caption_of(row.value)):
                captions[row.value["file_name"]] = caption
    except SpecError as exc:
        problems += exc.problems
    return captions, problems


def below(listed: Mapping[str, str], name: str) -> dict[str, str]:
    """Return what is listed for one sub-folder, relative to it."""
    start = f"{name}/"
    return {path[len(start) :]: text for path, text in listed.items() if path.startswith(start)}


def is_metadata(item: Item) -> bool:
    """Return whether this is a row of a metadata file: for one image, not for one subject."""
    fields = item.value
    return (
        isinstance(fields, dict)
        and isinstance(fields.get("file_name"), str)
        and "images" not in fields
    )


def caption_of(fields: dict[str, Any]) -> str | None:
    """Return the caption in a row of a metadata file."""
    texts = (fields.get(key) for key in CAPTION_KEYS)
    return next((text.strip() for text in texts if isinstance(text, str) and text.strip()), None)


def with_placeholders(
    written: Sequence[str | None], noun: str, identifier: str | None, entry: Entry
) -> tuple[str, ...] | None:
    """Write {subject} into every caption; None if there are no captions.

    It replaces the subject's name: "sks dog" if the identifier is known, else "dog".
    """
    if not any(written):
        return None
    if missing := written.count(None):
        what = f"{missing} of its {len(written)} images have no caption: {PLAIN!r} is used for them"
        entry.warn(what, "write the missing captions, or remove the others")
    captions = [_with_placeholder(text or PLAIN, noun, identifier) for text in written]
    unnamed = [text for text in captions if "{subject}" not in text]
    if unnamed:
        what = f"{len(unnamed)} of its captions do not name the subject ({unnamed[0]:.60}): "
        entry.warn(what + f"'{PLAIN}, ' is put before them", "write {subject} where it is named")
    return tuple(text if "{subject}" in text else f"{PLAIN}, {text}" for text in captions)


def _with_placeholder(caption: str, noun: str, identifier: str | None) -> str:
    if "{subject}" in caption:
        return caption
    nouns = [] if noun == NO_NOUN else [noun]
    phrases = [f"{identifier} {one}" for one in nouns]
    names = nouns if identifier is None else [*phrases, identifier, *nouns]
    for name in names:
        words = r"\s+".join(map(re.escape, name.split()))
        form = re.compile(rf"(?<!\w){words}(?!\w)", re.IGNORECASE)
        replaced, count = form.subn("{subject}", caption, count=1)
        if count:
            return replaced
    return caption


def check_captions(entry: Entry, captions: Any) -> None:
    """Note captions that do not name the subject, or whose number is not that of the images."""
    if not isinstance(captions, list | tuple):
        return
    if entry.images and len(captions) != len(entry.images):
        what = f"has {len(captions)} captions for {len(entry.images)} images"
        entry.error(what, "give one caption per image, in the same order, or none")
    for caption in captions:
        if not isinstance(caption, str):
            continue  # Subject's validator reports it
        try:
            check_subject_prompt(caption)
        except ValueError as exc:
            entry.error(f"captions: {exc}", "write {subject} where the subject is named")
