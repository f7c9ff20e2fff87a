"""How each class of objects is drawn.

Owns the geometry of objects; the nouns are those of the DreamBooth benchmark that differ visibly in
a bold drawing of 64 pixels. Same conventions as creatures.py.
"""

from __future__ import annotations

from collections.abc import Callable

from dbray.miniature.world.creatures import Coat, Proportions
from dbray.miniature.world.drawing import (
    INK,
    PAPER,
    Figure,
    Points,
    Shape,
    arc,
    box,
    ellipse,
    moved,
    polygon,
    rotate,
    shade,
    stroke,
)

GLASS = (170, 220, 245)
FLAME = (255, 200, 40)


def backpack(coat: Coat, proportions: Proportions) -> Figure:
    """A backpack: rounded bag, front pocket, straps, handle."""
    width, height, pocket, flap = proportions
    half = 0.56 + 0.05 * width
    top = -0.66 - 0.06 * height
    far = [
        Shape(stroke(arc(0.0, top, 0.2, 0.24, 180, 360), 0.12), shade(coat.second, 0.8), True),
        *(
            Shape(ellipse(s * (half + 0.06), 0.42, 0.16, 0.4), shade(coat.second, 0.8), True)
            for s in (-1, 1)
        ),
    ]
    bag = polygon(
        (-half, 0.88),
        (-half, top + 0.36),
        (-half * 0.72, top + 0.08),
        (0.0, top),
        (half * 0.72, top + 0.08),
        (half, top + 0.36),
        (half, 0.88),
    )
    body = [Shape(bag, coat.body, outlined=True)]
    line = -0.12 + 0.06 * flap
    edge = 0.26 + 0.05 * pocket
    near = [
        Shape(box(-half, line - 0.05, half, line + 0.03), shade(coat.body, 0.5)),
        Shape(box(-half * 0.72, edge, half * 0.72, 0.78), coat.second, outlined=True),
        Shape(box(-half * 0.72, edge + 0.12, half * 0.72, edge + 0.18), shade(coat.second, 0.5)),
        Shape(box(-0.07, edge + 0.08, 0.07, edge + 0.32), (235, 200, 70)),
    ]
    return Figure(far, body, near)


def teapot(coat: Coat, proportions: Proportions) -> Figure:
    """A teapot: round belly, spout, looped handle, lid with a knob."""
    width, height, spout, knob = proportions
    half = 0.54 + 0.05 * width
    high = 0.5 + 0.05 * height
    far = [
        Shape(stroke(arc(-0.5, 0.16, 0.42, 0.36, 70, 290), 0.14), coat.second, outlined=True),
    ]
    body = [
        Shape(
            polygon(
                (0.3, 0.4),
                (0.66, 0.2),
                (0.82, -0.3 - 0.06 * spout),
                (1.04, -0.3),
                (0.86, 0.36),
                (0.4, 0.7),
            ),
            coat.body,
            outlined=True,
        ),
        Shape(ellipse(0.0, 0.28, half, high), coat.body, outlined=True),
    ]
    near = [
        Shape(
            polygon(*[(0.36 * x, -0.14 + 0.26 * y) for x, y in arc(0, 0, 1, 1, 180, 360)]),
            coat.second,
            outlined=True,
        ),
        Shape(ellipse(0.0, -0.47, 0.12 + 0.02 * knob, 0.11), coat.second, outlined=True),
        Shape(box(-0.34, 0.74, 0.34, 0.86), shade(coat.body, 0.6), outlined=True),
    ]
    return Figure(far, body, near)


def clock(coat: Coat, proportions: Proportions) -> Figure:
    """An alarm clock: rim in the body colour, white face, hands, two bells, feet."""
    size, rim, hour, minute = proportions
    radius = 0.68 + 0.04 * size
    face = radius * (0.68 + 0.04 * rim)
    far = [
        *(
            Shape(stroke([(s * 0.34, 0.6), (s * 0.52, 0.94)], 0.16), coat.second, True)
            for s in (-1, 1)
        ),
        *(Shape(ellipse(s * 0.46, -0.62, 0.27, 0.2, s * 38), coat.second, True) for s in (-1, 1)),
    ]
    body = [Shape(ellipse(0.0, 0.1, radius, radius, 0, 30), coat.body, outlined=True)]
    long_hand = ellipse(0.0, -face * 0.4, 0.045, face * 0.4, num_points=10)
    short_hand = ellipse(0.0, -face * 0.27, 0.055, face * 0.29, num_points=10)
    near = [Shape(ellipse(0.0, 0.1, face, face, 0, 30), PAPER)]
    for step in range(4):
        x, y = ((0, -1), (1, 0), (0, 1), (-1, 0))[step]
        near.append(Shape(ellipse(x * face * 0.8, 0.1 + y * face * 0.8, 0.055, 0.055), INK))
    for hand, angle in ((long_hand, minute * 170.0), (short_hand, hour * 170.0)):
        near.append(Shape(_turned(hand, angle), INK))
    return Figure(far, body, near)


def _turned(points: Points, degrees: float) -> Points:
    return moved(rotate(points, degrees), 0.0, 0.1)


def car(coat: Coat, proportions: Proportions) -> Figure:
    """A car from the side: cabin, windows, two wheels."""
    length, cabin, wheel, roof = proportions
    half = 0.92 + 0.06 * length
    top = -0.52 - 0.06 * roof
    left = -0.5 + 0.06 * cabin
    radius = 0.25 + 0.03 * wheel
    body = [
        Shape(polygon((left - 0.16, 0.0), (left, top), (0.32, top), (0.58, 0.0)), coat.body, True),
        Shape(
            polygon(
                (-half, 0.5),
                (-half, 0.06),
                (-half + 0.1, -0.06),
                (0.6, -0.06),
                (half - 0.04, 0.1),
                (half, 0.5),
            ),
            coat.body,
            outlined=True,
        ),
    ]
    near = [
        Shape(
            polygon(
                (left - 0.02, -0.04), (left + 0.08, top + 0.1), (-0.1, top + 0.1), (-0.1, -0.04)
            ),
            GLASS,
        ),
        Shape(polygon((0.0, -0.04), (0.0, top + 0.1), (0.27, top + 0.1), (0.44, -0.04)), GLASS),
        Shape(box(-half, 0.3, half, 0.4), coat.second),
        Shape(ellipse(half - 0.08, 0.18, 0.09, 0.1), FLAME),
    ]
    for x in (-0.54, 0.54):
        near.append(Shape(ellipse(x, 0.5, radius, radius), (35, 35, 40), outlined=True))
        near.append(Shape(ellipse(x, 0.5, radius * 0.45, radius * 0.45), (205, 205, 210)))
    return Figure([], body, near)


def vase(coat: Coat, proportions: Proportions) -> Figure:
    """A vase with three flowers."""
    belly, neck, lip, stem = proportions
    wide = 0.46 + 0.06 * belly
    thin = 0.2 + 0.03 * neck
    mouth = 0.32 + 0.04 * lip
    far: list[Shape] = []
    for x, y in ((-0.44, -0.66), (0.0, -0.86), (0.44, -0.68)):
        y -= 0.05 * stem
        far.append(
            Shape(stroke([(0.0, -0.1), (x * 0.6, y + 0.3), (x, y)], 0.07), (40, 120, 50), True)
        )
        far.append(Shape(ellipse(x, y, 0.2, 0.2), coat.second, outlined=True))
        far.append(Shape(ellipse(x, y, 0.08, 0.08), FLAME))
    right = [
        (mouth, -0.22),
        (thin, -0.06),
        (thin + 0.06, 0.1),
        (wide, 0.4),
        (wide * 0.9, 0.68),
        (0.28, 0.92),
    ]
    body = [Shape(polygon(*right, *[(-x, y) for x, y in reversed(right)]), coat.body, True)]
    near = [Shape(ellipse(0.0, -0.22, mouth, 0.07), shade(coat.body, 0.5), outlined=True)]
    return Figure(far, body, near)


def boot(coat: Coat, proportions: Proportions) -> Figure:
    """A boot from the side: tall shaft, toe, sole, laces."""
    shaft, toe, sole, cuff = proportions
    front = 0.86 + 0.06 * toe
    top = -0.82 - 0.06 * shaft
    thick = 0.15 + 0.03 * sole
    outline = polygon(
        (-0.56, top),
        (0.16, top),
        (0.2, 0.12),
        (0.5, 0.22),
        (front - 0.06, 0.4),
        (front, 0.72),
        (-0.6, 0.72),
    )
    body = [Shape(outline, coat.body, outlined=True)]
    near = [
        Shape(box(-0.64, 0.72, front + 0.04, 0.72 + thick), (60, 45, 40), outlined=True),
        Shape(box(-0.62, top - 0.02, 0.22, top + 0.22 + 0.04 * cuff), coat.second, outlined=True),
    ]
    for y in (-0.38, -0.16, 0.06):
        near.append(Shape(stroke([(-0.12, y), (0.2, y + 0.05)], 0.08), PAPER))
    return Figure([], body, near)


def candle(coat: Coat, proportions: Proportions) -> Figure:
    """A burning candle on a dish."""
    height, width, flame, dish = proportions
    half = 0.27 + 0.04 * width
    top = -0.32 - 0.08 * height
    far = [
        Shape(stroke(arc(0.66, 0.72, 0.2, 0.16, -120, 150), 0.09), coat.second, True),
        Shape(ellipse(0.0, 0.8, 0.72 + 0.05 * dish, 0.17), coat.second, outlined=True),
    ]
    body = [Shape(box(-half, top, half, 0.76), coat.body, outlined=True)]
    high = 0.26 + 0.04 * flame
    centre = top - 0.16 - high
    tear = polygon(
        (0.0, centre - high * 1.15),
        (0.17, centre + 0.02),
        (0.13, centre + high * 0.8),
        (0.0, centre + high),
        (-0.13, centre + high * 0.8),
        (-0.17, centre + 0.02),
    )
    near = [
        Shape(stroke([(0.0, top), (0.0, top - 0.2)], 0.07), INK),
        Shape(tear, (255, 120, 20), outlined=True),
        Shape(ellipse(0.0, centre + 0.08, 0.085, high * 0.6), (255, 240, 120)),
        Shape(ellipse(0.0, top, half, 0.08), shade(coat.body, 1.35), outlined=True),
    ]
    return Figure(far, body, near)


def bowl(coat: Coat, proportions: Proportions) -> Figure:
    """A bowl full of round berries."""
    width, depth, berry, foot = proportions
    half = 0.82 + 0.06 * width
    deep = 0.66 + 0.06 * depth
    size = 0.23 + 0.02 * berry
    far = [
        Shape(ellipse(x, y, size, size), coat.second, outlined=True)
        for x, y in ((-0.24, -0.36), (0.24, -0.36), (-0.5, -0.12), (0.0, -0.14), (0.5, -0.12))
    ]
    half_disc = [(half * x, -0.02 + deep * y) for x, y in arc(0, 0, 1, 1, 0, 180)]
    body = [
        Shape(
            box(-0.34 - 0.05 * foot, 0.54, 0.34 + 0.05 * foot, 0.78), shade(coat.body, 0.7), True
        ),
        Shape(polygon(*half_disc), coat.body, outlined=True),
    ]
    near = [Shape(box(-half - 0.06, -0.08, half + 0.06, 0.06), shade(coat.body, 1.3), True)]
    return Figure(far, body, near)


OBJECTS: dict[str, Callable[[Coat, Proportions], Figure]] = {
    "backpack": backpack,
    "teapot": teapot,
    "clock": clock,
    "car": car,
    "vase": vase,
    "boot": boot,
    "candle": candle,
    "bowl": bowl,
}
