"""What is doubtful about one subject's photographs; every finding is a warning of one line.

Owns the thresholds and the words. The figures of a photograph are in its ImageCheck. The thresholds
were set so that none of the 158 photographs of google/dreambooth is blurred, over- or underexposed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from dbray.subjects import looks
from dbray.subjects.entries import Entry
from dbray.subjects.images import ImageCheck

MIN_KEPT = 1 / 3
"""Share of a photograph that the square cut from it has to keep."""
# Of 64 bits. Resaved and scaled copies of the dreambooth dataset's photographs differ from them in
# 0 to 4; of its 342 pairs of photographs of one subject the nearest differ in 5, most in over 20.
NEAR_COPY_BITS = 3
MAX_EDGE_WIDTH = 0.95
"""Those of the dataset have 0.46 to 0.79; after a Gaussian blur of 2 to 16 pixels, over 1.09."""
MAX_CLIPPED = 0.75
"""On white ground the dataset has up to 0.62; with 4 times the light, three in four exceed 0.85."""
MIN_BRIGHTEST = 45.0
"""The darkest of the dataset has 61."""

Photograph: TypeAlias = tuple[str, ImageCheck]
"""A path or URI, and what was found in the file."""


def judge(entry: Entry, photographs: Sequence[Photograph], resolution: int) -> None:
    """Note what is doubtful about photographs that show something."""
    seen = list(dict(photographs).items())
    _name_small(entry, seen, resolution)
    for is_poor, what, fix in _FAULTS:
        poor = [image for image, check in seen if is_poor(check)]
        if poor:
            others = f" and {len(poor) - 1} others" if len(poor) > 1 else ""
            verb = "are" if others else "is"
            entry.warn(f"{poor[0]}{others} {verb} {what}", fix)
    _name_strips(entry, seen)
    _name_copies(entry, photographs)


def _is_blurred(check: ImageCheck) -> bool:
    return check.look.edge_width > MAX_EDGE_WIDTH


def _is_overexposed(check: ImageCheck) -> bool:
    return check.look.clipped > MAX_CLIPPED


def _is_underexposed(check: ImageCheck) -> bool:
    return check.look.brightest < MIN_BRIGHTEST


_FAULTS: tuple[tuple[Callable[[ImageCheck], bool], str, str], ...] = (
    (_is_blurred, "blurred: training learns the blur", "use sharp photographs"),
    (
        _is_overexposed,
        "overexposed: most of the middle has lost its colours",
        "use photographs with less light",
    ),
    (
        _is_underexposed,
        "underexposed: almost all of it is black",
        "brighten it, or use photographs with more light",
    ),
)


def _name_small(entry: Entry, seen: Sequence[Photograph], resolution: int) -> None:
    small = [(image, check) for image, check in seen if min(check.width, check.height) < resolution]
    if small:
        image, check = small[0]
        others = f", and so have {len(small) - 1} others" if len(small) > 1 else ""
        what = f"{image} has only {check.width} x {check.height} pixels{others}"
        entry.warn(f"{what}; training sees {resolution} x {resolution}", "use larger photographs")


def _name_strips(entry: Entry, seen: Sequence[Photograph]) -> None:
    for image, check in seen:
        kept = min(check.width, check.height) / max(check.width, check.height)
        if kept < MIN_KEPT:
            what = f"{image} has {check.width} x {check.height} pixels, of which a square keeps"
            fix = "cut it to the subject, about as wide as it is high"
            entry.warn(f"{what} {kept:.0%}", fix)


def _name_copies(entry: Entry, seen: Sequence[Photograph]) -> None:
    """Note images that are the same or look the same: one line for each group of them."""
    fix = "keep one of them: a photograph that counts twice pulls the model towards its background"
    groups: list[list[Photograph]] = []
    for image, check in seen:
        group = next((group for group in groups if _is_copy(group[0][1], check)), None)
        if group is None:
            groups.append([(image, check)])
        else:
            group.append((image, check))
    for group in groups:
        if len(group) > 1:
            entry.warn(_what_of_copies(group), fix)


def _is_copy(a: ImageCheck, b: ImageCheck) -> bool:
    hashes = (a.perceptual, b.perceptual), (a.look.perceptual, b.look.perceptual)
    return a.digest == b.digest or any(
        looks.perceptual_distance(*pair) <= NEAR_COPY_BITS for pair in hashes
    )


def _what_of_copies(group: Sequence[Photograph]) -> str:
    names = list(dict.fromkeys(image for image, _ in group))
    if len(names) == 1:
        return f"{names[0]} is listed twice"
    rest = f" and {len(names) - 2} others" if len(names) > 2 else ""
    those = f"{names[0]}, {names[1]}{rest}" if rest else f"{names[0]} and {names[1]}"
    is_same = len({check.digest for _, check in group}) == 1
    return f"{those} are the same file" if is_same else f"{those} look almost the same"
