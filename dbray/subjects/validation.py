"""Subjects, read and checked: every problem of every subject in one go.

Owns validation: every image is fetched once and decoded, repeated ids, copies and near-copies of
images are named. How lists are written is listings'. Does not know what subjects are for.
"""

from __future__ import annotations

import json
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TextIO

from dbray.errors import Problem, StoreError, SubjectError
from dbray.spec.subject import Subject
from dbray.storage import store
from dbray.subjects import images, listings
from dbray.subjects.entries import Entry
from dbray.subjects.images import ImageCheck
from dbray.subjects.listings import Source

MIN_IMAGES = 3
MIN_SIDE_PIXELS = 64
# Of 64 bits. Resaved and scaled copies of the dreambooth dataset's photographs differ from them in
# 0 to 4; of its 342 pairs of photographs of one subject the nearest differ in 5, most in over 20.
NEAR_COPY_BITS = 3

_NUM_FETCHERS = 16


@dataclass(frozen=True, slots=True)
class CheckedSubject:
    """A subject whose images all decode. `image_digests` are hex SHA-256, in the images' order."""

    subject: Subject
    image_digests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Validation:
    """The subjects that can be used, and all that was found wrong."""

    subjects: tuple[CheckedSubject, ...]
    problems: tuple[Problem, ...]


def read(
    source: Source, class_noun: str | None = None, folder: str | Path = "."
) -> tuple[list[tuple[Subject, str]], list[Problem]]:
    """Read subjects without opening images; return each with 'file:line', and the problems.

    Args:
        source: a manifest's path or URI, a folder, subjects, or the list in a job file.
        class_noun: for subjects that have none.
        folder: where relative paths start from: the source's, and the images' of given Subjects.
            Those in a manifest start from the manifest.
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
) -> Validation:
    """Read subjects as `read` does, and look at every image. Bad input is listed, never raised.

    `on_progress` is called with the number of images looked at so far, and of all.
    """
    entries, problems = listings.parse(source, class_noun, str(folder))
    if not entries and not problems:
        place = source if isinstance(source, str) else "subjects"
        problems.append(Problem("error", place, "lists no subjects", "add at least one"))
    looks = _look_at_all({image for entry in entries for image in entry.images}, on_progress)
    _name_repeated_ids(entries)
    for entry in entries:
        _judge_images(entry, looks)
    _name_shared_images(entries, looks)
    subjects = []
    for entry in entries:
        problems.extend(entry.problems)
        if entry.subject is not None and all(p.severity == "warning" for p in entry.problems):
            digests = tuple(check.digest for _, check in _decoded(entry, looks))
            subjects.append(CheckedSubject(entry.subject, digests))
    return Validation(tuple(subjects), tuple(problems))


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

    Fetching waits on networks, so it has many threads. Decoding needs cores, and up to half a GiB
    for the largest images allowed, so only as many decode at once as there are cores.
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


def _judge_images(entry: Entry, looks: dict[str, ImageCheck | str]) -> None:
    """Note what is wrong with the images of one subject."""
    for image in dict.fromkeys(entry.images):
        look = looks[image]
        if isinstance(look, str):
            entry.error(look, "replace the image, or take it off the list")
        elif min(look.width, look.height) < MIN_SIDE_PIXELS:
            what = f"{image} has only {look.width} x {look.height} pixels"
            entry.warn(what, "use a larger photograph")
    decoded = _decoded(entry, looks)
    _name_copies(entry, decoded)
    num_different = len({check.digest for _, check in decoded})
    if len(decoded) == len(entry.images) > 0 and num_different < MIN_IMAGES:
        what = f"has only {num_different} image{'s' if num_different > 1 else ''}"
        entry.warn(what, "3 to 6 photographs, from different sides and places, work best")


def _name_copies(entry: Entry, decoded: list[tuple[str, ImageCheck]]) -> None:
    fix = "remove one: a photograph that counts twice pulls the model towards its background"
    for (a, check_a), (b, check_b) in combinations(decoded, 2):
        if a == b:
            entry.warn(f"{a} is listed twice", fix)
        elif check_a.digest == check_b.digest:
            entry.warn(f"{a} and {b} are the same file", fix)
        elif images.perceptual_distance(check_a.perceptual, check_b.perceptual) <= NEAR_COPY_BITS:
            entry.warn(f"{a} and {b} look almost the same", fix)


def _name_shared_images(entries: Iterable[Entry], looks: dict[str, ImageCheck | str]) -> None:
    """Note files that two subjects share: usually one subject under two names, or a slip."""
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
