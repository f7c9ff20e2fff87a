"""The sheet of an ablation: a row for each variant, a column for each subject and prompt.

All images of a column have the same prompt and seed. Above them are the subjects' photographs and
the images of the untouched base. Knows only pictures and their captions.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

CELL = 128
_MARGIN, _CAPTION, _LABEL, _FONT = 2, 68, 150, 12
_CHARACTERS_OF_CELL, _CHARACTERS_OF_LABEL, _MOST_LINES = 20, 22, 4
_INK, _PAPER = (40, 40, 40), (255, 255, 255)


@dataclass(frozen=True)
class Row:
    """A label, and an image file for each column, or None."""

    label: str
    images: Sequence[bytes | None]


def draw(captions: Sequence[str], rows: Sequence[Row]) -> bytes:
    """Draw a sheet; returns a PNG file."""
    sheet = Image.new("RGB", (_LABEL + CELL * len(captions), _CAPTION + CELL * len(rows)), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT)
    for number, caption in enumerate(captions):
        place = (_LABEL + number * CELL + _MARGIN, _MARGIN)
        pen.text(place, _wrapped(caption, _CHARACTERS_OF_CELL), fill=_INK, font=font)
    for number, row in enumerate(rows):
        top = _CAPTION + number * CELL
        label = _wrapped(row.label, _CHARACTERS_OF_LABEL)
        pen.text((2 * _MARGIN, top + CELL // 2 - _FONT), label, fill=_INK, font=font)
        for column, picture in _pictures(row):
            sheet.paste(picture, (_LABEL + column * CELL + _MARGIN, top + _MARGIN))
    out = io.BytesIO()
    sheet.save(out, "PNG", optimize=True)
    return out.getvalue()


def _pictures(row: Row) -> Iterator[tuple[int, Image.Image]]:
    for column, data in enumerate(row.images):
        if data is not None:
            yield column, _fitted(Image.open(io.BytesIO(data)).convert("RGB"))


def _fitted(picture: Image.Image) -> Image.Image:
    """Scale a picture into a cell; small ones keep their pixels visible."""
    side = CELL - 2 * _MARGIN
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    kind = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    return picture.resize(size, kind)


def _wrapped(text: str, width: int) -> str:
    lines = [line for part in text.split("\n") for line in textwrap.wrap(part, width)]
    return "\n".join(lines[:_MOST_LINES])
