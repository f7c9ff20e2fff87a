"""Eyes, mouths and accessories of creatures.

Owns expressions and accessories, placed by a figure's Anchors. They are large on purpose: at
64 pixels, with an autoencoder of one latent for 4 x 4 pixels, small things vanish.
"""

from __future__ import annotations

from dbray.miniature.world.drawing import (
    INK,
    PAPER,
    Anchors,
    Colour,
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

ACCESSORIES = ("hat", "scarf", "glasses")
EXPRESSIONS = ("happy", "sad", "sleeping")
TEAR: Colour = (90, 190, 255)


def face(anchors: Anchors, expression: str | None) -> list[Shape]:
    """Return eyes and mouth for an expression (None: a neutral look)."""
    shapes: list[Shape] = []
    for x, y in anchors.eyes:
        if expression == "sleeping":
            shapes.append(Shape(ellipse(x, y, 0.17, 0.15), PAPER))
            shapes.append(Shape(stroke(arc(x, y - 0.04, 0.15, 0.13, 10, 170), 0.1), INK))
            continue
        shapes.append(Shape(ellipse(x, y, 0.15, 0.16), PAPER))
        shapes.append(Shape(ellipse(x + 0.02, y + 0.01, 0.1, 0.11), INK))
        if expression == "sad":
            shapes.append(Shape(ellipse(x + 0.02, y + 0.28, 0.09, 0.14), TEAR))
    x, y = anchors.mouth
    if expression == "happy":
        smile = polygon(*arc(x, y - 0.03, 0.2, 0.2, 0, 180))
        shapes += [
            Shape(smile, (190, 20, 40)),
            Shape(box(x - 0.14, y - 0.03, x + 0.14, y + 0.03), PAPER),
        ]
    elif expression == "sad":
        shapes.append(Shape(stroke(arc(x, y + 0.14, 0.15, 0.14, 190, 350), 0.07), INK))
    return shapes


def accessory(kind: str, anchors: Anchors, colour: Colour) -> list[Shape]:
    """Return the shapes of a hat, a scarf or glasses on a creature."""
    makers = {"hat": _hat, "scarf": _scarf, "glasses": _glasses}
    return makers[kind](anchors, colour)


def _hat(anchors: Anchors, colour: Colour) -> list[Shape]:
    wide = anchors.head_width * 0.62
    band = shade(colour, 0.45) if sum(colour) > 200 else (235, 225, 120)

    def put(points: Points) -> Points:
        return moved(rotate(points, anchors.lean), anchors.top[0], anchors.top[1] + 0.1)

    crown = polygon(
        (-wide * 0.62, 0.0), (-wide * 0.56, -0.54), (wide * 0.56, -0.54), (wide * 0.62, 0.0)
    )
    return [
        Shape(put(crown), colour, outlined=True),
        Shape(put(box(-wide * 0.6, -0.2, wide * 0.6, -0.06)), band),
        Shape(put(ellipse(0.0, 0.02, wide, 0.1)), colour, outlined=True),
    ]


def _scarf(anchors: Anchors, colour: Colour) -> list[Shape]:
    x, y = anchors.neck
    half = anchors.neck_width / 2 + 0.08
    lean = anchors.lean * 2.2

    def put(points: Points) -> Points:
        return moved(rotate(points, lean), x, y)

    dark = shade(colour, 0.6)
    tail_x = -0.1 if lean else 0.16
    return [
        Shape(put(box(tail_x, 0.0, tail_x + 0.3, 0.62)), colour, outlined=True),
        Shape(put(box(tail_x, 0.38, tail_x + 0.3, 0.5)), dark),
        Shape(put(ellipse(0.0, 0.0, half, 0.2)), colour, outlined=True),
        Shape(put(box(-half * 0.5, -0.18, -half * 0.26, 0.18)), dark),
        Shape(put(box(half * 0.26, -0.18, half * 0.5, 0.18)), dark),
    ]


def _glasses(anchors: Anchors, colour: Colour) -> list[Shape]:
    if len(anchors.eyes) == 2:
        lenses = list(anchors.eyes)
    else:  # from the side, the second lens is visible behind the nose
        x, y = anchors.eyes[0]
        lenses = [(x - 0.24, y), (x + 0.28, y + 0.02)]
    (x0, y0), (x1, y1) = lenses
    shapes = [Shape(stroke([(x0 - 0.34, y0 - 0.03), (x1 + 0.2, y1 - 0.03)], 0.12), colour)]
    for x, y in lenses:
        shapes.append(Shape(ellipse(x, y, 0.28, 0.25), colour, outlined=True))
        shapes.append(Shape(ellipse(x, y, 0.16, 0.14), (28, 32, 48)))
        shapes.append(Shape(ellipse(x - 0.04, y - 0.04, 0.045, 0.04), PAPER))
    return shapes
