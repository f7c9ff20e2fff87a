"""The places of the drawn world: each paints a whole canvas, with random variation.

Owns backgrounds. Every painter fills a square canvas; lengths are fractions of its side, so that
only the renderer knows about supersampling.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from dbray.miniature.world.drawing import Colour, shade


class Scenery:
    """A canvas with fractional coordinates and its own random generator."""

    def __init__(self, side: int, rng: np.random.Generator) -> None:
        self.image = Image.new("RGB", (side, side))
        self.side = side
        self.rng = rng
        self._draw = ImageDraw.Draw(self.image)

    def between(self, low: float, high: float) -> float:
        """Return a uniform number."""
        return float(self.rng.uniform(low, high))

    def vary(self, colour: Colour, amount: int = 12) -> Colour:
        """Return a nearby colour."""
        moved = np.clip(np.asarray(colour) + self.rng.integers(-amount, amount + 1, 3), 0, 255)
        return int(moved[0]), int(moved[1]), int(moved[2])

    def gradient(self, top: Colour, bottom: Colour) -> None:
        """Fill everything from `top` to `bottom` in twelve bands."""
        bands = 12
        for band in range(bands):
            mix = band / (bands - 1)
            red, green, blue = (round(a + (b - a) * mix) for a, b in zip(top, bottom, strict=True))
            self.box(0.0, band / bands, 1.0, (band + 1) / bands + 0.01, (red, green, blue))

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: Colour) -> None:
        """Fill a rectangle."""
        self._draw.rectangle([v * self.side for v in (x0, y0, max(x0, x1), max(y0, y1))], fill)

    def oval(self, x: float, y: float, rx: float, ry: float, fill: Colour) -> None:
        """Fill an ellipse around (x, y)."""
        self._draw.ellipse([v * self.side for v in (x - rx, y - ry, x + rx, y + ry)], fill)

    def shape(self, corners: list[tuple[float, float]], fill: Colour) -> None:
        """Fill a polygon."""
        self._draw.polygon([(x * self.side, y * self.side) for x, y in corners], fill)

    def line(self, path: list[tuple[float, float]], width: float, fill: Colour) -> None:
        """Draw an open line."""
        self._draw.line(
            [(x * self.side, y * self.side) for x, y in path],
            fill,
            max(1, round(width * self.side)),
        )


def grass(view: Scenery) -> None:
    """A meadow under a blue sky."""
    view.gradient(view.vary((110, 185, 250)), (190, 225, 255))
    horizon = view.between(0.36, 0.5)
    for _ in range(2):
        x, y = view.between(0, 1), view.between(0.06, 0.22)
        view.oval(x, y, 0.14, 0.05, (250, 250, 255))
    ground = view.vary((85, 180, 60))
    view.box(0, horizon, 1, 1, ground)
    dark = shade(ground, 0.72)
    for _ in range(26):
        x, y = view.between(0, 1), view.between(horizon + 0.06, 1)
        view.shape([(x - 0.02, y), (x + 0.01, y - 0.07), (x + 0.02, y)], dark)
    petal = ((255, 255, 255), (255, 225, 60), (255, 130, 160))[int(view.rng.integers(3))]
    for _ in range(int(view.rng.integers(0, 6))):
        view.oval(view.between(0, 1), view.between(horizon + 0.08, 1), 0.022, 0.022, petal)


def beach(view: Scenery) -> None:
    """Sand, a strip of sea, perhaps a parasol."""
    view.gradient(view.vary((130, 210, 250)), (215, 240, 255))
    sea = view.between(0.28, 0.38)
    shore = sea + view.between(0.14, 0.2)
    view.box(0, sea, 1, shore, view.vary((20, 130, 190)))
    view.box(0, shore - 0.03, 1, shore + 0.015, (240, 250, 255))
    sand = view.vary((240, 215, 150), 8)
    view.box(0, shore + 0.015, 1, 1, sand)
    for _ in range(14):
        view.oval(view.between(0, 1), view.between(shore + 0.05, 1), 0.014, 0.01, shade(sand, 0.82))
    if view.rng.random() < 0.6:
        x = view.between(0.1, 0.9)
        view.line([(x, 0.16), (x, shore + 0.1)], 0.02, (150, 100, 60))
        view.shape([(x - 0.2, 0.24), (x, 0.08), (x + 0.2, 0.24)], view.vary((230, 60, 60), 30))
        view.shape([(x - 0.07, 0.24), (x, 0.08), (x + 0.07, 0.24)], (250, 250, 245))


def snow(view: Scenery) -> None:
    """White ground, pale sky, firs and flakes."""
    view.gradient(view.vary((170, 190, 215)), (215, 225, 238))
    horizon = view.between(0.38, 0.5)
    for _ in range(int(view.rng.integers(2, 5))):
        x = view.between(0, 1)
        for step in range(3):
            y, wide = horizon - 0.26 + 0.09 * step, 0.05 + 0.03 * step
            view.shape([(x - wide, y + 0.13), (x, y), (x + wide, y + 0.13)], (60, 105, 95))
    view.box(0, horizon, 1, 1, (238, 244, 252))
    for _ in range(3):
        view.oval(view.between(0, 1), view.between(horizon + 0.15, 1), 0.2, 0.03, (212, 224, 242))
    for _ in range(22):
        view.oval(view.between(0, 1), view.between(0, 1), 0.016, 0.016, (255, 255, 255))


def night(view: Scenery) -> None:
    """Stars, a yellow moon, dark hills."""
    view.gradient(view.vary((10, 14, 48), 8), (36, 44, 100))
    for _ in range(22):
        view.oval(view.between(0, 1), view.between(0, 0.7), 0.012, 0.012, (250, 245, 200))
    x, y = view.between(0.12, 0.88), view.between(0.1, 0.22)
    view.oval(x, y, 0.09, 0.09, (255, 232, 130))
    if view.rng.random() < 0.5:
        view.oval(x + 0.045, y - 0.02, 0.075, 0.075, (16, 20, 58))
    horizon = view.between(0.62, 0.74)
    view.oval(view.between(0, 1), horizon + 0.2, 0.7, 0.3, (20, 30, 52))
    view.box(0, horizon + 0.08, 1, 1, (16, 26, 44))


def desert(view: Scenery) -> None:
    """Orange dunes, a sun, cacti."""
    view.gradient(view.vary((250, 170, 90)), (255, 222, 160))
    view.oval(view.between(0.15, 0.85), view.between(0.12, 0.26), 0.09, 0.09, (255, 246, 190))
    horizon = view.between(0.42, 0.52)
    sand = view.vary((224, 140, 64))
    for _ in range(2):
        view.oval(view.between(0, 1), horizon + 0.1, 0.45, 0.18, shade(sand, 0.86))
    view.box(0, horizon + 0.04, 1, 1, sand)
    for _ in range(3):
        x, y = view.between(0, 1), view.between(horizon + 0.15, 1)
        view.line([(x - 0.16, y), (x, y - 0.025), (x + 0.16, y)], 0.018, shade(sand, 0.84))
    for _ in range(int(view.rng.integers(1, 3))):
        x = view.between(0.06, 0.94)
        green = (50, 125, 60)
        view.line([(x, horizon - 0.2), (x, horizon + 0.14)], 0.055, green)
        view.line([(x, horizon), (x + 0.09, horizon), (x + 0.09, horizon - 0.12)], 0.04, green)
        view.line(
            [(x, horizon + 0.04), (x - 0.09, horizon + 0.04), (x - 0.09, horizon - 0.06)],
            0.04,
            green,
        )


def city(view: Scenery) -> None:
    """Towers with lit windows, and a road."""
    view.gradient(view.vary((165, 180, 200)), (210, 215, 225))
    road = view.between(0.64, 0.74)
    x = view.between(-0.1, 0.0)
    while x < 1.0:
        wide, top = view.between(0.16, 0.26), view.between(0.06, 0.34)
        tower = ((88, 98, 122), (120, 92, 92), (70, 84, 104))[int(view.rng.integers(3))]
        view.box(x, top, x + wide, road, tower)
        for row in np.arange(top + 0.05, road - 0.05, 0.1):
            for column in np.arange(x + 0.03, x + wide - 0.04, 0.075):
                lit = view.rng.random() < 0.7
                view.box(
                    column,
                    row,
                    column + 0.035,
                    row + 0.05,
                    (250, 232, 150) if lit else (50, 56, 74),
                )
        x += wide + 0.01
    view.box(0, road, 1, 1, (78, 78, 84))
    view.box(0, road, 1, road + 0.03, (170, 170, 172))
    start = view.between(-0.2, 0.0)
    for step in range(5):
        left = start + step * 0.28
        view.box(left, 0.86, left + 0.15, 0.9, (240, 225, 120))


def wooden_floor(view: Scenery) -> None:
    """A room: a plain wall and planks."""
    wall = ((235, 222, 200), (196, 214, 206), (226, 200, 205), (205, 210, 228))
    view.box(0, 0, 1, 1, view.vary(wall[int(view.rng.integers(4))], 8))
    edge = view.between(0.4, 0.5)
    view.box(0, edge - 0.04, 1, edge, (248, 246, 240))
    plank = view.vary((178, 112, 58), 10)
    line = shade(plank, 0.62)
    tops = (edge, edge + 0.09, edge + 0.21, edge + 0.37, 1.0)
    for row in range(4):
        view.box(0, tops[row], 1, tops[row + 1], shade(plank, 1.0 if row % 2 else 0.9))
        view.box(0, tops[row], 1, tops[row] + 0.014, line)
        offset = view.between(0, 0.5)
        for x in (offset, offset + 0.5):
            view.box(x, tops[row], x + 0.014, tops[row + 1], line)


def ocean(view: Scenery) -> None:
    """Under water: waves on top, bubbles, weed."""
    view.gradient(view.vary((40, 160, 225)), (8, 70, 150))
    for row in range(2):
        y, shift = 0.05 + 0.1 * row, view.between(-0.2, 0.0)
        path = [(shift + 0.1 * step, y + (0.03 if step % 2 else 0.0)) for step in range(14)]
        view.line(path, 0.024, (190, 232, 250))
    for _ in range(8):
        x, y, size = view.between(0, 1), view.between(0.2, 0.95), view.between(0.02, 0.04)
        view.oval(x, y, size, size, (150, 215, 245))
        view.oval(x, y, size * 0.55, size * 0.55, (60, 150, 215))
    for _ in range(int(view.rng.integers(2, 5))):
        x = view.between(0, 1)
        path = [(x + (0.025 if step % 2 else -0.025), 1 - 0.07 * step) for step in range(5)]
        view.line(path, 0.035, (20, 130, 100))


def jungle(view: Scenery) -> None:
    """Dense leaves, trunks and vines."""
    view.gradient(view.vary((38, 96, 44)), (20, 62, 34))
    for _ in range(2):
        x = view.between(0, 1)
        view.box(x, 0, x + 0.09, 0.9, (84, 60, 36))
    for _ in range(16):
        x, y = view.between(0, 1), view.between(-0.05, 1.0)
        leaf = ((30, 130, 48), (60, 160, 50), (18, 96, 56))[int(view.rng.integers(3))]
        dx, dy = view.between(0.1, 0.18) * (1 if view.rng.random() < 0.5 else -1), 0.12
        view.shape(
            [(x, y), (x + dx * 0.7, y - 0.02), (x + dx, y + dy), (x + dx * 0.2, y + dy * 0.8)], leaf
        )
    for _ in range(2):
        x = view.between(0, 1)
        view.line([(x, 0), (x + 0.04, 0.2), (x - 0.02, 0.4)], 0.018, (140, 180, 60))
    view.box(0, 0.88, 1, 1, (46, 70, 30))


def moon(view: Scenery) -> None:
    """Grey craters under a black sky with the earth in it."""
    view.box(0, 0, 1, 1, (6, 6, 12))
    for _ in range(18):
        view.oval(view.between(0, 1), view.between(0, 0.5), 0.009, 0.009, (255, 255, 255))
    x, y = view.between(0.12, 0.88), view.between(0.12, 0.2)
    view.oval(x, y, 0.1, 0.1, (50, 120, 225))
    view.oval(x - 0.02, y - 0.02, 0.045, 0.05, (80, 180, 90))
    horizon = view.between(0.46, 0.56)
    ground = view.vary((176, 176, 182), 8)
    view.oval(0.5, horizon + 0.5, 0.95, 0.52, ground)
    view.box(0, horizon + 0.14, 1, 1, ground)
    for _ in range(7):
        x, y, size = view.between(0, 1), view.between(horizon + 0.1, 1), view.between(0.05, 0.1)
        view.oval(x, y, size, size * 0.45, (112, 112, 120))
        view.oval(x, y + 0.012, size * 0.8, size * 0.3, (142, 142, 150))


def mountain(view: Scenery) -> None:
    """Snow-capped peaks behind a pasture."""
    view.gradient(view.vary((150, 200, 235)), (235, 225, 225))
    base = view.between(0.58, 0.66)
    for x in (view.between(0.0, 0.3), view.between(0.65, 1.0), view.between(0.3, 0.65)):
        top, half = view.between(0.05, 0.2), view.between(0.34, 0.44)
        rock = view.vary((112, 104, 140), 10)
        view.shape([(x - half, base), (x, top), (x + half, base)], rock)
        cut = 0.36
        drop = (base - top) * cut
        view.shape(
            [
                (x - half * cut, top + drop),
                (x, top),
                (x + half * cut, top + drop),
                (x + half * 0.12, top + drop * 0.75),
                (x - half * 0.1, top + drop * 1.15),
            ],
            (248, 250, 255),
        )
    view.box(0, base, 1, 1, view.vary((128, 150, 72), 10))
    for _ in range(6):
        view.oval(view.between(0, 1), view.between(base + 0.06, 1), 0.035, 0.022, (150, 145, 140))


def cobblestones(view: Scenery) -> None:
    """A brick wall and a street of round stones."""
    brick = view.vary((170, 84, 66), 12)
    view.box(0, 0, 1, 0.5, shade(brick, 0.62))
    for row in range(5):
        y, shift = row * 0.1, -0.13 * (row % 2) - view.between(0, 0.02)
        for column in range(6):
            x = shift + column * 0.235
            view.box(x, y, x + 0.215, y + 0.08, shade(brick, view.between(0.88, 1.0)))
    street = view.between(0.4, 0.48)
    view.box(0, street, 1, 1, (62, 62, 70))
    y, size = street + 0.05, 0.055
    while y < 1.08:
        x = view.between(-0.08, 0.0)
        while x < 1.1:
            grey = int(view.between(130, 176))
            view.oval(x, y, size, size * 0.62, (grey, grey - 2, grey + 8))
            x += size * 2.15
        y += size * 1.36
        size *= 1.13


PLACES: dict[str, Callable[[Scenery], None]] = {
    "grass": grass,
    "beach": beach,
    "snow": snow,
    "night": night,
    "desert": desert,
    "city": city,
    "wooden floor": wooden_floor,
    "ocean": ocean,
    "jungle": jungle,
    "moon": moon,
    "mountain": mountain,
    "cobblestone street": cobblestones,
}
