"""Subjects, read and checked: every problem of every subject in one go.

Owns validation: every image is fetched once and decoded; repeated ids, copies and near-copies of
images are reported. Listings read the lists. Does not know what subjects are for.
"""

from __future__ import annotations

import json
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from dbray.errors import Problem, StoreError, SubjectError
from dbray.spec.subject import Subject
from dbray.storage import store
from dbray.subjects import images, listings, photographs
from dbray.subjects.entries import Entry
from dbray.subjects.images import ImageCheck
from dbray.subjects.listings import Source

MIN_IMAGES = 3
MIN_SIDE_PIXELS = 64
_NUM_FETCHERS = 16


@dataclass(frozen=True, slots=True)
class CheckedSubject:
    """A subject whose images all decode. `image_digests` are hex SHA-256, in the images' order."""

    subject: Subject
    image_digests: tuple[str, ...]
    decodings: tuple[int, ...] = ()
    """See ImageCheck.decoding; empty where all are 1."""


@dataclass(frozen=True, slots=True)
class Validation:
    """The usable subjects, and every problem found."""

    subjects: tuple[CheckedSubject, ...]
    problems: tuple[Problem, ...]
    invalid: tuple[Subject, ...] = ()
    """Subjects with errors that could still be read."""


def read(
    source: Source, class_noun: str | None = None, folder: str | Path = "."
) -> tuple[list[tuple[Subject, str]], list[Problem]]:
    """Read subjects without opening images; return each with 'file:line', and the problems.

    Args:
        source: a manifest's path or URI, a folder, subjects, or the list in a job file.
        class_noun: for subjects that have none.
        folder: relative paths of the source and of the images of given Subjects start here; those
            in a manifest start from the manifest.
    """
    entries, problems = listings.parse(source, class_noun, str(folder))
    _name_repeated_ids(entries)
    for entry in entries:
        problems.extend(entry.problems)
    return [(e.subject, e.where) for e in entries if e.subject is not None], problems


def scan(folder: Path, class_noun: str | None = None) -> tuple[list[Subject], list[Problem]]:
    """Make a subject of every sub-folder; its id comes from the folder's name.

    The class noun is the first line of the sub-folder's class.txt, else what the dreambooth
    dataset's prompts_and_classes.txt says, else `class_noun`.
    """
    found, problems = read(str(folder), class_noun)
    return [subject for subject, _ in found], problems


def validate(
    source: Source,
    class_noun: str | None = None,
    folder: str | Path = ".",
    on_progress: Callable[[int, int], None] | None = None,
    resolution: int | None = None,
) -> Validation:
    """Read subjects as `read` does, and look at every image. Bad input is listed, never raised.

    With the `resolution` of training, in pixels, smaller photographs are reported.
    `on_progress` is called with the number of images looked at so far, and of all.
    """
    entries, problems = listings.parse(source, class_noun, str(folder))
    if not entries and not problems:
        place = source if isinstance(source, str) else "subjects"
        problems.append(Problem("error", place, "lists no subjects", "add at least one"))
    looks = _look_at_all({image for entry in entries for image in entry.images}, on_progress)
    _name_repeated_ids(entries)
    for entry in entries:
        _judge_images(entry, looks, resolution or MIN_SIDE_PIXELS)
    _name_shared_images(entries, looks)
    subjects, invalid = [], []
    for entry in entries:
        problems.extend(entry.problems)
        if entry.subject is not None and all(p.severity == "warning" for p in entry.problems):
            checks = [check for _, check in _decoded(entry, looks)]
            digests = tuple(check.digest for check in checks)
            decodings = tuple(check.decoding for check in checks)
            later = decodings if any(one > 1 for one in decodings) else ()
            subjects.append(CheckedSubject(entry.subject, digests, later))
        elif entry.subject is not None:
            invalid.append(entry.subject)
    return Validation(tuple(subjects), tuple(problems), tuple(invalid))


def write_jsonl(subjects: Iterable[Subject], target: str | Path | TextIO) -> None:
    """Write the canonical manifest. Images below its folder get relative paths.

    Raises:
        StoreError: the file cannot be written.
    """
    path = Path(target).resolve() if isinstance(target, str | Path) else None
    lines = []
    for subject in subjects:
        value = subject.model_dump(mode="json", exclude_none=True)
        if path is not None:
            value["images"] = [_relative(image, path.parent) for image in subject.images]
        lines.append(json.dumps(value, ensure_ascii=False) + "\n")
    if path is not None:
        store.Store(str(path.parent)).write_bytes(path.name, "".join(lines).encode())
    elif not isinstance(target, str | Path):
        target.writelines(lines)


def _relative(image: str, folder: Path) -> str:
    path = Path(image)
    if "://" in image or not path.is_relative_to(folder):
        return image
    return path.relative_to(folder).as_posix()


def _look_at_all(
    paths: set[str], on_progress: Callable[[int, int], None] | None
) -> dict[str, ImageCheck | str]:
    """Fetch and decode every image once; a str is the reason why one cannot be used.

    Fetching waits for networks, so it has many threads. Decoding needs a core, and up to half a GiB
    for the largest images allowed, so no more images are decoded at once than there are cores.
    """
    decoders = threading.Semaphore(min(os.cpu_count() or 1, _NUM_FETCHERS))

    def look(path: str) -> ImageCheck | str:
        try:
            data = store.read_uri(path, limit_bytes=images.MAX_IMAGE_BYTES)
            with decoders:
                return images.check(data, path)
        except (StoreError, SubjectError) as exc:
            return str(exc)

    looks: dict[str, ImageCheck | str] = {}
    pool = ThreadPoolExecutor(_NUM_FETCHERS, thread_name_prefix="validate")
    try:
        futures = {pool.submit(look, path): path for path in sorted(paths)}
        for future in as_completed(futures):
            looks[futures[future]] = future.result()
            if on_progress is not None:
                on_progress(len(looks), len(futures))
    finally:
        pool.shutdown(cancel_futures=True)
    return looks


def _decoded(entry: Entry, looks: dict[str, ImageCheck | str]) -> list[tuple[str, ImageCheck]]:
    """The images of an entry that decode."""
    pairs = [(image, looks[image]) for image in entry.images]
    return [(image, look) for image, look in pairs if isinstance(look, ImageCheck)]


def _name_repeated_ids(entries: Iterable[Entry]) -> None:
    first: dict[str, Entry] = {}
    for entry in entries:
        if entry.name is None:
            continue
        earlier = first.setdefault(entry.name, entry)
        if earlier is not entry:
            what = f"subject {entry.name!r} is listed twice, here and at {earlier.where}"
            entry.error(what, entry.to_rename)


def _judge_images(entry: Entry, looks: dict[str, ImageCheck | str], resolution: int) -> None:
    """Note the problems of one subject's images."""
    for image in dict.fromkeys(entry.images):
        look = looks[image]
        if isinstance(look, str):
            entry.error(look, "replace the image, or take it off the list")
        elif look.blank:
            entry.warn(f"{image} is {look.blank}", "replace the image, or take it off the list")
    decoded = _decoded(entry, looks)
    seen = [(image, check) for image, check in decoded if not check.blank]
    photographs.judge(entry, seen, resolution)
    num_different = len({check.digest for _, check in decoded})
    if len(decoded) == len(entry.images) > 0 and num_different < MIN_IMAGES:
        what = f"has only {num_different} image{'s' if num_different > 1 else ''}"
        entry.warn(what, "3 to 6 photographs, from different sides and places, work best")


def _name_shared_images(entries: Iterable[Entry], looks: dict[str, ImageCheck | str]) -> None:
    """Note files that two subjects share: usually one subject under two names, or a mistake."""
    first: dict[str, tuple[Entry, str]] = {}
    for entry in entries:
        shared: dict[str, list[str]] = defaultdict(list)
        for image, check in _decoded(entry, looks):
            owner, owned = first.setdefault(check.digest, (entry, image))
            if owner is not entry:
                title = f"subject {owner.name!r}" if owner.name else "another subject"
                shared[f"{title} ({owner.where})"].append(f"{image} is {owned}")
        for owner, pairs in shared.items():
            what = f"shares {len(pairs)} of its images with {owner}: {pairs[0]}"
            entry.warn(what, "check which of the two subjects they show")
