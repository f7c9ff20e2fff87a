"""How each living class is drawn, and where it has eyes and accessories.

Owns the geometry of creatures. Every function takes the body colour, the second colour and four
proportions in [-1, 1], and returns a Figure facing right (or the viewer).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dbray.miniature.world.drawing import (
    INK,
    PAPER,
    Anchors,
    Colour,
    Figure,
    Shape,
    arc,
    box,
    ellipse,
    polygon,
    shade,
    stroke,
)

Proportions = tuple[float, float, float, float]
PINK: Colour = (245, 150, 165)
BEAK: Colour = (250, 165, 30)


@dataclass(frozen=True, slots=True)
class Coat:
    """The colours of a figure."""

    body: Colour
    second: Colour


def dog(coat: Coat, proportions: Proportions) -> Figure:
    """A dog from the side: long body, floppy ear, muzzle, tail up."""
    length, head, ear, leg = proportions
    foot = 0.86 + 0.06 * leg
    back = -0.58 - 0.08 * length
    size = 0.37 + 0.04 * head
    dark = shade(coat.body, 0.72)
    far = [
        Shape(stroke([(x, 0.3), (x, foot - 0.04)], 0.2), dark, outlined=True)
        for x in (back + 0.3, 0.12)
    ]
    body = [
        Shape(
            stroke([(back, 0.05), (back - 0.2, -0.2), (back - 0.24, -0.5)], 0.2, 0.12),
            coat.body,
            outlined=True,
        ),
        *(
            Shape(stroke([(x, 0.3), (x, foot)], 0.24), coat.body, outlined=True)
            for x in (back + 0.06, 0.36)
        ),
        Shape(ellipse((back + 0.4) / 2, 0.16, (0.5 - back) / 2 + 0.08, 0.34), coat.body, True),
        Shape(ellipse(0.48, -0.38, size, size), coat.body, outlined=True),
        Shape(ellipse(0.8, -0.24, 0.26, 0.19), coat.body, outlined=True),
    ]
    near = [
        Shape(ellipse(0.26, -0.3, 0.15, 0.34 + 0.07 * ear, 12), shade(coat.second, 0.8), True),
        Shape(ellipse(0.99, -0.34, 0.11, 0.09), INK),
    ]
    anchors = Anchors(
        (0.46, -0.38 - size), ((0.6, -0.5),), (0.84, -0.14), (0.3, 0.02), 0.74, 0.62, 10.0
    )
    return Figure(far, body, near, anchors)


def cat(coat: Coat, proportions: Proportions) -> Figure:
    """A sitting cat from the front: pointed ears, whiskers, curled tail."""
    width, head, ear, tail = proportions
    wide = 0.42 + 0.05 * width
    size = 0.52 + 0.04 * head
    tip = -0.98 - 0.08 * ear
    body = [
        Shape(
            stroke(
                [(0.3, 0.8), (0.7, 0.78), (0.86 + 0.04 * tail, 0.5), (0.78, 0.2), (0.9, 0.02)],
                0.2,
                0.14,
            ),
            coat.body,
            outlined=True,
        ),
        Shape(ellipse(0.0, 0.5, wide, 0.46), coat.body, outlined=True),
        *(
            Shape(polygon((s * 0.5, -0.3), (s * 0.48, tip), (s * 0.08, -0.62)), coat.body, True)
            for s in (-1, 1)
        ),
        Shape(ellipse(0.0, -0.28, size, 0.42), coat.body, outlined=True),
    ]
    near = [
        *(
            Shape(polygon((s * 0.42, -0.5), (s * 0.42, tip + 0.18), (s * 0.2, -0.62)), PINK)
            for s in (-1, 1)
        ),
        *(Shape(ellipse(s * 0.2, 0.9, 0.18, 0.1), coat.second, outlined=True) for s in (-1, 1)),
        Shape(polygon((-0.09, -0.18), (0.09, -0.18), (0.0, -0.07)), PINK),
        *(
            Shape(stroke([(s * 0.28, -0.1), (s * 0.74, y)], 0.045), INK)
            for s in (-1, 1)
            for y in (-0.2, 0.02)
        ),
    ]
    anchors = Anchors(
        (0.0, -0.68), ((-0.22, -0.35), (0.22, -0.35)), (0.0, 0.02), (0.0, 0.16), 0.84, 0.66
    )
    return Figure([], body, near, anchors)


def rabbit(coat: Coat, proportions: Proportions) -> Figure:
    """A rabbit from the front: two tall ears, teeth, round body."""
    width, head, ear, spread = proportions
    size = 0.42 + 0.04 * head
    high = 0.42 + 0.06 * ear
    apart = 0.22 + 0.03 * spread
    body = [
        *(
            Shape(ellipse(s * apart, -0.62, 0.15, high, s * 8), coat.body, outlined=True)
            for s in (-1, 1)
        ),
        Shape(ellipse(0.0, 0.56, 0.44 + 0.05 * width, 0.42), coat.body, outlined=True),
        Shape(ellipse(0.0, -0.04, size, 0.37), coat.body, outlined=True),
    ]
    near = [
        *(Shape(ellipse(s * apart, -0.62, 0.07, high - 0.12, s * 8), PINK) for s in (-1, 1)),
        Shape(ellipse(0.0, 0.64, 0.24, 0.26), shade(coat.second, 1.15)),
        *(Shape(ellipse(s * 0.26, 0.94, 0.21, 0.1), coat.second, outlined=True) for s in (-1, 1)),
        Shape(ellipse(0.0, 0.03, 0.09, 0.06), PINK),
        Shape(box(-0.09, 0.2, 0.09, 0.36), PAPER),
    ]
    anchors = Anchors(
        (0.0, -0.38), ((-0.19, -0.12), (0.19, -0.12)), (0.0, 0.15), (0.0, 0.32), 0.7, 0.62
    )
    return Figure([], body, near, anchors)


def bear(coat: Coat, proportions: Proportions) -> Figure:
    """A sitting bear from the front: round ears, big muzzle, belly, arms."""
    width, head, ear, arm = proportions
    size = 0.47 + 0.04 * head
    round_ear = 0.2 + 0.04 * ear
    body = [
        *(Shape(ellipse(s * 0.42, -0.72, round_ear, round_ear), coat.body, True) for s in (-1, 1)),
        *(
            Shape(ellipse(s * 0.5, 0.3, 0.17, 0.34 + 0.04 * arm, s * -32), coat.body, True)
            for s in (-1, 1)
        ),
        *(Shape(ellipse(s * 0.36, 0.84, 0.26, 0.19), coat.body, True) for s in (-1, 1)),
        Shape(ellipse(0.0, 0.44, 0.47 + 0.05 * width, 0.46), coat.body, outlined=True),
        Shape(ellipse(0.0, -0.36, size, 0.44), coat.body, outlined=True),
    ]
    near = [
        *(
            Shape(ellipse(s * 0.42, -0.72, round_ear * 0.5, round_ear * 0.5), coat.second)
            for s in (-1, 1)
        ),
        Shape(ellipse(0.0, 0.48, 0.29, 0.3), coat.second),
        *(Shape(ellipse(s * 0.4, 0.85, 0.14, 0.11), coat.second) for s in (-1, 1)),
        Shape(ellipse(0.0, -0.18, 0.25, 0.19), shade(coat.second, 1.3)),
        Shape(ellipse(0.0, -0.26, 0.12, 0.08), INK),
    ]
    anchors = Anchors(
        (0.0, -0.8), ((-0.21, -0.46), (0.21, -0.46)), (0.0, -0.1), (0.0, 0.1), 0.8, 0.72
    )
    return Figure([], body, near, anchors)


def bird(coat: Coat, proportions: Proportions) -> Figure:
    """A bird from the side: round body, wing, beak, thin legs, tail feathers."""
    length, head, wing, tail = proportions
    size = 0.33 + 0.03 * head
    legs = [
        Shape(stroke([(x, 0.4), (x, 0.9), (x + 0.16, 0.92)], 0.09), BEAK, True)
        for x in (-0.15, 0.12)
    ]
    body = [
        Shape(polygon((-0.4, 0.02), (-1.0, -0.2 - 0.1 * tail), (-1.0, 0.22)), coat.body, True),
        Shape(ellipse(-0.08, 0.14, 0.56 + 0.05 * length, 0.43, -14), coat.body, outlined=True),
        Shape(ellipse(0.34, -0.4, size, size), coat.body, outlined=True),
    ]
    near = [
        Shape(polygon((0.6, -0.54), (1.05, -0.36), (0.6, -0.22)), BEAK, outlined=True),
        Shape(ellipse(-0.2, 0.14, 0.36 + 0.05 * wing, 0.23, -20), coat.second, outlined=True),
        Shape(polygon((-0.4, 0.08), (-0.74, 0.34), (-0.2, 0.36)), coat.second),
    ]
    anchors = Anchors(
        (0.34, -0.4 - size), ((0.42, -0.46),), (0.7, -0.28), (0.2, -0.08), 0.64, 0.6, 8.0
    )
    return Figure(legs, body, near, anchors)


def fish(coat: Coat, proportions: Proportions) -> Figure:
    """A fish from the side: oval body, forked tail, fins."""
    length, height, tail, fin = proportions
    half = 0.66 + 0.06 * length
    high = 0.46 + 0.06 * height
    fork = 0.44 + 0.08 * tail
    far = [
        Shape(polygon((-0.42, 0.0), (-1.0, -fork), (-0.84, 0.0), (-1.0, fork)), coat.second, True),
        Shape(polygon((-0.3, -0.3), (-0.2, -0.72 - 0.08 * fin), (0.36, -0.3)), coat.second, True),
        Shape(polygon((-0.2, 0.3), (-0.24, 0.72), (0.24, 0.34)), coat.second, True),
    ]
    body = [Shape(ellipse(0.14, 0.0, half, high), coat.body, outlined=True)]
    near = [
        Shape(polygon((0.0, 0.06), (-0.28, 0.02), (-0.22, 0.3)), shade(coat.second, 0.85)),
        Shape(stroke(arc(0.22, 0.0, 0.12, 0.32, -75, 75), 0.05), shade(coat.body, 0.55)),
    ]
    anchors = Anchors(
        (0.42, -high + 0.02), ((0.54, -0.12),), (0.72, 0.14), (0.28, 0.0), 0.66, 0.72, 14.0
    )
    return Figure(far, body, near, anchors)


def turtle(coat: Coat, proportions: Proportions) -> Figure:
    """A turtle from the side: a dome of a shell in the body colour, limbs in the second."""
    dome, head, leg, length = proportions
    half = 0.66 + 0.05 * length
    high = 0.78 + 0.08 * dome
    size = 0.25 + 0.03 * head
    limb = coat.second
    far = [
        Shape(stroke([(0.4, 0.3), (0.68, 0.05), (0.76, -0.1)], 0.24, 0.26), limb, outlined=True),
        Shape(ellipse(0.78, -0.16, size, size * 0.9), limb, outlined=True),
        Shape(polygon((-0.7, 0.3), (-1.0, 0.52), (-0.6, 0.46)), limb, outlined=True),
        *(Shape(ellipse(x, 0.64, 0.17, 0.24 + 0.04 * leg), limb, True) for x in (-0.52, 0.3)),
    ]
    shell = [(-0.1 + half * x, 0.44 + high * y) for x, y in arc(0, 0, 1, 1, 180, 360)]
    body = [Shape(polygon(*shell), coat.body, outlined=True)]
    rim = Shape(
        stroke([(-0.16 - half, 0.44), (-0.04 + half, 0.44)], 0.16), shade(coat.body, 0.6), True
    )
    anchors = Anchors(
        (0.78, -0.16 - size * 0.85), ((0.86, -0.22),), (0.92, -0.06), (0.62, 0.14), 0.52, 0.42, 8.0
    )
    return Figure(far, body, [rim], anchors)


def elephant(coat: Coat, proportions: Proportions) -> Figure:
    """An elephant from the side: heavy body, column legs, big ear, trunk."""
    length, head, ear, trunk = proportions
    back = -0.62 - 0.06 * length
    size = 0.36 + 0.03 * head
    dark = shade(coat.body, 0.72)
    far = [
        Shape(
            stroke([(back - 0.1, -0.1), (back - 0.26, 0.1), (back - 0.22, 0.34)], 0.09), dark, True
        ),
        *(Shape(box(x - 0.14, 0.3, x + 0.14, 0.84), dark, True) for x in (back + 0.44, 0.16)),
    ]
    nose = [(0.66, -0.2), (0.86, 0.0), (0.9, 0.34), (0.84 + 0.04 * trunk, 0.62), (1.04, 0.66)]
    body = [
        *(Shape(box(x - 0.16, 0.3, x + 0.16, 0.9), coat.body, True) for x in (back + 0.16, 0.34)),
        Shape(ellipse((back + 0.42) / 2, 0.06, (0.5 - back) / 2 + 0.1, 0.5), coat.body, True),
        Shape(stroke(nose, 0.36, 0.16), coat.body, outlined=True),
        Shape(ellipse(0.54, -0.3, size, size), coat.body, outlined=True),
    ]
    near = [
        Shape(ellipse(0.24, -0.22, 0.24 + 0.04 * ear, 0.38, 8), shade(coat.second, 0.92), True),
        Shape(stroke([(0.72, 0.02), (0.96, 0.16)], 0.11, 0.03), PAPER),
    ]
    anchors = Anchors(
        (0.5, -0.3 - size), ((0.66, -0.38),), (0.7, -0.06), (0.3, 0.2), 0.72, 0.7, 8.0
    )
    return Figure(far, body, near, anchors)


CREATURES: dict[str, Callable[[Coat, Proportions], Figure]] = {
    "dog": dog,
    "cat": cat,
    "bird": bird,
    "fish": fish,
    "rabbit": rabbit,
    "turtle": turtle,
    "bear": bear,
    "elephant": elephant,
}
