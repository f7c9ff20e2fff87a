"""Fine detail: what an identity has besides, which a picture of 32 pixels cannot show.

Owns weaves on a body, a letter on an object and whiskers. All of it follows from the seed of an
identity's pattern, so that an identity has it in every photograph. Weaves repeat after about 2.6
pixels of a picture of 64, and letters are a pixel thick: above the Nyquist frequency of 32 pixels,
below that of 64. Same coordinates as creatures.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dbray.miniature.world.drawing import (
    INK,
    PAPER,
    Anchors,
    Colour,
    Points,
    Shape,
    box,
    ellipse,
    moved,
    polygon,
    shade,
    stroke,
)

WEAVES: tuple[str, ...] = ("smooth", "pinstripes", "dots", "checks", "zigzags")
PERIOD = 0.105
STROKE = 0.05
WHISKERED = frozenset({"dog", "cat", "rabbit", "bear"})
LETTER_PLACES: dict[str, tuple[float, float]] = {
    "backpack": (0.0, 0.05),
    "teapot": (0.0, 0.3),
    "clock": (0.0, 0.36),
    "car": (-0.06, 0.16),
    "vase": (0.0, 0.44),
    "boot": (-0.2, 0.42),
    "candle": (0.0, 0.3),
    "bowl": (0.0, 0.28),
}
Line = tuple[tuple[float, float], ...]
LETTERS: dict[str, tuple[Line, ...]] = {
    "a": (((-1, 1), (0, -1), (1, 1)), ((-0.5, 0.3), (0.5, 0.3))),
    "e": (((1, -1), (-1, -1), (-1, 1), (1, 1)), ((-1, 0), (0.7, 0))),
    "h": (((-1, -1), (-1, 1)), ((1, -1), (1, 1)), ((-1, 0), (1, 0))),
    "k": (((-1, -1), (-1, 1)), ((1, -1), (-1, 0.1)), ((-0.6, 0), (1, 1))),
    "l": (((-1, -1), (-1, 1), (1, 1)),),
    "n": (((-1, 1), (-1, -1)), ((-1, -1), (1, 1)), ((1, 1), (1, -1))),
    "t": (((-1, -1), (1, -1)), ((0, -1), (0, 1))),
    "v": (((-1, -1), (0, 1), (1, -1)),),
    "x": (((-1, -1), (1, 1)), ((1, -1), (-1, 1))),
    "z": (((-1, -1), (1, -1)), ((1, -1), (-1, 1)), ((-1, 1), (1, 1))),
}


@dataclass(frozen=True, slots=True)
class Fine:
    """The fine detail of one identity; `letter` is for objects, `whiskers` per side of a face."""

    weave: str
    letter: str
    whiskers: int
    slant: float


def fine_detail(pattern_seed: int) -> Fine:
    """Return the fine detail that belongs to the seed of a pattern."""
    rng = np.random.default_rng([pattern_seed, 1])
    return Fine(
        str(rng.choice(WEAVES)),
        str(rng.choice(list(LETTERS))),
        int(rng.integers(2, 5)),
        float(rng.uniform(-0.5, 0.5)),
    )


def weave(fine: Fine, body: Colour) -> list[Shape]:
    """Return what is drawn on the whole body, under its pattern."""
    tone = shade(body, 0.6) if sum(body) > 330 else shade(body, 1.5)
    makers: dict[str, Callable[[], list[Points]]] = {
        "smooth": list,
        "pinstripes": lambda: _pinstripes(fine.slant),
        "dots": _dots,
        "checks": _checks,
        "zigzags": _zigzags,
    }
    return [Shape(points, tone) for points in makers[fine.weave]()]


def marks(fine: Fine, class_noun: str, anchors: Anchors | None, mirrored: bool) -> list[Shape]:
    """Return the letter of an object, or the whiskers of a creature that has some.

    A letter of a mirrored figure is mirrored once more, so that it can be read.
    """
    if class_noun in LETTER_PLACES:
        return _plate(fine.letter, LETTER_PLACES[class_noun], -1 if mirrored else 1)
    if anchors is not None and class_noun in WHISKERED:
        return _whiskers(fine, anchors)
    return []


def _rows() -> np.ndarray:
    return np.arange(-1.15, 1.15, PERIOD)


def _pinstripes(lean: float) -> list[Points]:
    half = PERIOD / 4
    return [
        polygon((x - lean - half, -1.2), (x - lean + half, -1.2), (x + lean + half, 1.2),
                (x + lean - half, 1.2))
        for x in np.arange(-1.7, 1.7, PERIOD)
    ]  # fmt: skip


def _dots() -> list[Points]:
    radius = PERIOD * 0.34
    return [
        ellipse(x + (PERIOD / 2 if row % 2 else 0.0), y, radius, radius, num_points=6)
        for row, y in enumerate(_rows())
        for x in _rows()
    ]


def _checks() -> list[Points]:
    side = PERIOD * 0.75
    return [
        box(x, y, x + side, y + side)
        for row, y in enumerate(np.arange(-1.15, 1.15, side))
        for x in np.arange(-1.15 + side * (row % 2), 1.15, 2 * side)
    ]


def _zigzags() -> list[Points]:
    xs = np.arange(-1.2, 1.2, PERIOD * 0.9)
    return [
        stroke([(x, y + (0.045 if n % 2 else -0.045)) for n, x in enumerate(xs)], PERIOD * 0.45)
        for y in _rows()
    ]


def _plate(letter: str, place: tuple[float, float], side: int) -> list[Shape]:
    shapes = [Shape(moved(box(-0.17, -0.21, 0.17, 0.21), *place), PAPER)]
    for line in LETTERS[letter]:
        path = [(0.1 * x * side, 0.14 * y) for x, y in line]
        shapes += [
            Shape(moved(stroke(part, STROKE), *place), INK) for part in itertools.pairwise(path)
        ]
    return shapes


def _whiskers(fine: Fine, anchors: Anchors) -> list[Shape]:
    x, y = anchors.mouth
    sides: Sequence[int] = (-1, 1) if len(anchors.eyes) == 2 else (-1,)
    return [
        Shape(stroke([(x + side * 0.1, y - 0.04 + 0.3 * rise), (x + side * 0.5, y + rise)], 0.036),
              INK)
        for side in sides
        for rise in np.linspace(-0.16, 0.14, fine.whiskers) + 0.1 * fine.slant
    ]  # fmt: skip
