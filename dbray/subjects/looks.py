"""How a photograph looks as training sees it: blur and exposure of its middle square.

Pixels in, figures out; the thresholds and the words are in dbray.subjects.validation. numpy and
Pillow only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

LOOK_SIDE = 512
"""Pixels of the square that is looked at, at most: a larger one is scaled down, as for training."""
_WHITE, _FULL, _DARK = 250, 254, 5
"""Levels from which all channels are white, and one is clipped; up to which all are black."""


@dataclass(frozen=True, slots=True)
class Look:
    """Figures of a photograph's middle square."""

    edge_width: float
    """Standard deviation of its edges in pixels, weighted by their contrast: sharp ones have under
    1, and a Gaussian blur adds its own (as squares)."""
    clipped: float
    """Share of pixels with a full channel that are not white: lost colours."""
    brightest: float
    """Level (0 to 255) below which 95 of 100 pixels are."""


def look_at(square: Image.Image) -> Look:
    """Measure a square that was cut from a photograph, RGB."""
    if square.width > LOOK_SIDE:
        square = square.resize((LOOK_SIDE, LOOK_SIDE), Image.Resampling.LANCZOS)
    pixels = np.asarray(square)
    lowest, highest = pixels.min(axis=2), pixels.max(axis=2)
    return Look(
        edge_width=_edge_width(np.asarray(square.convert("L"), dtype=np.float32)),
        clipped=float(((highest >= _FULL) & (lowest < _WHITE)).mean()),
        brightest=float(np.percentile(highest, 95)),
    )


def _edge_width(grey: np.ndarray) -> float:
    """Width of an edge that a Gaussian blurred: the energy of its slope over that of its bend.

    An edge of width s has the ratio 2 s^2, whatever its contrast, so it is not a matter of how much
    a picture shows, as the variance of the Laplacian alone would be.
    """
    slopes = bends = 0.0
    for axis in (0, 1):
        slope = np.diff(grey, axis=axis)
        slopes += float(np.square(slope).sum())
        bends += float(np.square(np.diff(slope, axis=axis)).sum())
    return float(np.sqrt(slopes / (2 * bends))) if bends else 0.0
