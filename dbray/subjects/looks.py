"""How a picture looks as training sees it: blur, exposure and a hash of its middle square.

Pixels in, figures out; the thresholds and the words are in dbray.subjects.photographs. numpy and
Pillow only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

LOOK_SIDE = 512
"""Pixels of the square that is looked at, at most: a larger one is scaled down, as for training."""
_COARSE = 4
"""Blur is also measured at a side so many times smaller, where wide blur is still narrow."""
_FULL = 254
"""Level from which a channel is full."""


@dataclass(frozen=True, slots=True)
class Look:
    """Figures of a picture's middle square."""

    edge_width: float
    """Standard deviation of edges in pixels: under 0.8 where they are sharp. A blur adds its own,
    as squares."""
    clipped: float
    """Share of the pixels in the middle half of its sides that have a full channel."""
    brightest: float
    """Level (0 to 255) below which 95 % of pixels are."""
    perceptual: int
    """Its difference hash."""


def look_at(image: Image.Image) -> Look:
    """Measure the middle square of a picture, RGB."""
    square = _middle_square(image)
    levels = np.asarray(square).max(axis=2)
    quarter = len(levels) // 4
    middle = levels[quarter : len(levels) - quarter, quarter : len(levels) - quarter]
    return Look(
        edge_width=max(_edge_width(one) for one in (square, _coarse(square))),
        clipped=float((middle >= _FULL).mean()),
        brightest=float(np.percentile(levels, 95)),
        perceptual=difference_hash(square),
    )


def _middle_square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    target = min(side, LOOK_SIDE)
    # A reducing gap of 3 gives almost the same pixels in a fraction of the time.
    return image.resize((target, target), Image.Resampling.LANCZOS, box, reducing_gap=3.0)


def _coarse(square: Image.Image) -> Image.Image:
    side = max(1, square.width // _COARSE)
    return square.resize((side, side), Image.Resampling.LANCZOS)


def _edge_width(square: Image.Image) -> float:
    """Return the width of edges, from the energies of their slopes and bends.

    A Gaussian edge of width s has 2 s^2 times as much energy in its slope as in its bend. The
    variance of the Laplacian, which is that of the bend alone, also depends on how much a picture
    shows. Where contrasts are so low that rounding counts, a blurred edge may seem sharp.
    """
    grey = np.asarray(square.convert("L"), dtype=np.float32)
    slopes = bends = 0.0
    for axis in (0, 1):
        slope = np.diff(grey, axis=axis)
        slopes += float(np.square(slope).sum())
        bends += float(np.square(np.diff(slope, axis=axis)).sum())
    return (slopes / (2 * bends)) ** 0.5 if bends else 0.0


def difference_hash(image: Image.Image) -> int:
    """Return 64 bits: is each of 8 x 8 patches brighter than its right neighbour?

    Scaling, recompression and small edits of colour keep it; two photographs of one thing differ in
    about half of the bits.
    """
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.LANCZOS), dtype=np.int16)
    bits = np.packbits((grey[:, :-1] > grey[:, 1:]).reshape(-1))
    return int.from_bytes(bits.tobytes(), "big")


def perceptual_distance(a: int, b: int) -> int:
    """Count the bits (0 to 64) in which two difference hashes differ."""
    return (a ^ b).bit_count()
