"""Shapes in a subject's own coordinates, and the pen that draws them on a canvas.

Owns geometry and painting. Does not know classes, places or captions. A figure is in a square of
about [-1, 1] x [-1, 1], y downwards; the pen rotates, mirrors and scales it, so that a figure and
its pattern move together: this keeps an identity stable over poses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Points = np.ndarray

INK: Colour = (24, 20, 24)
PAPER: Colour = (250, 250, 248)


@dataclass(frozen=True, slots=True)
class Shape:
    """One filled polygon; `outlined` shapes share the dark contour of the whole figure."""

    points: Points
    fill: Colour
    outlined: bool = False


@dataclass(frozen=True, slots=True)
class Anchors:
    """Where accessories and expressions go on a living figure."""

    top: tuple[float, float]
    eyes: tuple[tuple[float, float], ...]
    mouth: tuple[float, float]
    neck: tuple[float, float]
    head_width: float = 0.8
    neck_width: float = 0.7
    lean: float = 0.0


@dataclass(slots=True)
class Figure:
    """Shapes in painting order: `far` behind, `body` with the pattern, `near` in front."""

    far: list[Shape] = field(default_factory=list)
    body: list[Shape] = field(default_factory=list)
    near: list[Shape] = field(default_factory=list)
    anchors: Anchors | None = None


def ellipse(
    cx: float, cy: float, rx: float, ry: float, turn: float = 0.0, num_points: int = 22
) -> Points:
    """Return the outline of an ellipse turned by `turn` degrees."""
    angle = np.linspace(0.0, 2.0 * math.pi, num_points, endpoint=False)
    around = np.stack([rx * np.cos(angle), ry * np.sin(angle)], axis=1)
    return moved(rotate(around, turn), cx, cy)


def polygon(*corners: tuple[float, float]) -> Points:
    """Return the corners as an array."""
    return np.asarray(corners, dtype=np.float64)


def box(x0: float, y0: float, x1: float, y1: float) -> Points:
    """Return an upright rectangle."""
    return polygon((x0, y0), (x1, y0), (x1, y1), (x0, y1))


def stroke(path: Sequence[tuple[float, float]], start: float, end: float | None = None) -> Points:
    """Return a thick line along `path`, from width `start` to width `end`."""
    line = np.asarray(path, dtype=np.float64)
    tangent = np.gradient(line, axis=0)
    tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-9)
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], axis=1)
    half = np.linspace(start, start if end is None else end, len(line))[:, None] / 2.0
    return np.concatenate([line + normal * half, (line - normal * half)[::-1]])


def arc(
    cx: float, cy: float, rx: float, ry: float, first: float, last: float
) -> list[tuple[float, float]]:
    """Return points on an ellipse from `first` to `last` degrees (0 right, 90 down)."""
    angles = np.radians(np.linspace(first, last, 9))
    return [(cx + rx * math.cos(a), cy + ry * math.sin(a)) for a in angles]


def rotate(points: Points, degrees: float) -> Points:
    """Rotate points about the origin."""
    if degrees == 0.0:
        return points
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return points @ np.array([[cos, sin], [-sin, cos]])


def moved(points: Points, x: float, y: float) -> Points:
    """Shift points."""
    return points + np.array([x, y])


def shade(colour: Colour, factor: float) -> Colour:
    """Darken (factor < 1) or lighten towards white (factor > 1)."""
    if factor <= 1.0:
        red, green, blue = (round(channel * factor) for channel in colour)
    else:
        weight = factor - 1.0
        red, green, blue = (round(c + (255 - c) * min(weight, 1.0)) for c in colour)
    return red, green, blue


@dataclass(frozen=True, slots=True)
class Pen:
    """Maps a figure's coordinates to canvas pixels and paints."""

    canvas: Image.Image
    centre: tuple[float, float]
    unit: float
    tilt: float = 0.0
    mirrored: bool = False

    def pixels(self, points: Points) -> list[tuple[float, float]]:
        """Return canvas coordinates for a figure's points."""
        turned = rotate(points * (-1.0, 1.0) if self.mirrored else points, self.tilt)
        return [(x, y) for x, y in (turned * self.unit + self.centre).tolist()]

    def paint(self, figure: Figure, pattern: Sequence[Shape], contour: Colour) -> None:
        """Paint one figure: contour first, so that parts join, then fills, the pattern on top."""
        draw = ImageDraw.Draw(self.canvas)
        width = max(4, round(self.unit * 0.09))
        for shape in (*figure.far, *figure.body, *figure.near):
            if shape.outlined:
                path = self.pixels(shape.points)
                draw.line([*path, *path[:2]], fill=contour, width=width, joint="curve")
        self._fill(draw, figure.far)
        self._fill(draw, figure.body)
        if pattern:
            self._paint_pattern(figure.body, pattern)
        self._fill(draw, figure.near)

    def _fill(self, draw: ImageDraw.ImageDraw, shapes: Sequence[Shape]) -> None:
        for shape in shapes:
            draw.polygon(self.pixels(shape.points), fill=shape.fill)

    def _paint_pattern(self, body: Sequence[Shape], pattern: Sequence[Shape]) -> None:
        mask = Image.new("1", self.canvas.size)
        mask_draw = ImageDraw.Draw(mask)
        for shape in body:
            mask_draw.polygon(self.pixels(shape.points), fill=1)
        layer = self.canvas.copy()
        layer_draw = ImageDraw.Draw(layer)
        for shape in pattern:
            layer_draw.polygon(self.pixels(shape.points), fill=shape.fill)
        self.canvas.paste(layer, (0, 0), mask)
