"""Art styles: a finished render as a sketch, a painting or a mosaic.

Owns the filters; they work at the final 64 x 64 pixels and are deterministic.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter, ImageOps

STYLES = ("sketch", "mosaic", "painting", "monet", "van gogh")


def apply_style(image: Image.Image, style: str) -> Image.Image:
    """Return the image in a style of STYLES."""
    makers = {
        "sketch": _sketch,
        "mosaic": _mosaic,
        "painting": _painting,
        "monet": _monet,
        "van gogh": _van_gogh,
    }
    return makers[style](image)


def _sketch(image: Image.Image) -> Image.Image:
    grey = np.asarray(image.convert("L"), dtype=np.float32)
    blurred = np.asarray(image.convert("L").filter(ImageFilter.GaussianBlur(2.0)), dtype=np.float32)
    lines = np.clip(238.0 - 2.6 * np.abs(grey - blurred) - 0.16 * (255.0 - grey), 20, 255)
    return Image.fromarray(lines.astype(np.uint8)).convert("RGB")


def _mosaic(image: Image.Image) -> Image.Image:
    small = image.resize((16, 16), Image.Resampling.BOX)
    tiles = np.asarray(small.resize(image.size, Image.Resampling.NEAREST)).copy()
    tiles[::4] = tiles[::4] // 2
    tiles[:, ::4] = tiles[:, ::4] // 2
    return Image.fromarray(tiles)


def _painting(image: Image.Image) -> Image.Image:
    return ImageOps.posterize(image.filter(ImageFilter.ModeFilter(5)), 3)


def _monet(image: Image.Image) -> Image.Image:
    soft = np.asarray(image.filter(ImageFilter.GaussianBlur(1.2)), dtype=np.float32)
    tinted = 0.78 * soft + 0.22 * np.array([214.0, 190.0, 226.0], dtype=np.float32)
    return Image.fromarray(tinted.astype(np.uint8))


def _van_gogh(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image, dtype=np.float32)
    rows, columns = np.mgrid[0:64, 0:64].astype(np.float32)
    shift_x = 1.5 * np.sin(rows / 3.2) * np.cos(columns / 6.0)
    shift_y = 1.5 * np.cos(columns / 3.2)
    source_y = np.clip(np.rint(rows + shift_y), 0, 63).astype(np.intp)
    source_x = np.clip(np.rint(columns + shift_x), 0, 63).astype(np.intp)
    swirled = pixels[source_y, source_x]
    light = swirled.mean(axis=2, keepdims=True) / 255.0
    tint = (1 - light) * np.array([16.0, 40.0, 130.0]) + light * np.array([255.0, 220.0, 90.0])
    return Image.fromarray((0.5 * swirled + 0.5 * tint).astype(np.uint8))
