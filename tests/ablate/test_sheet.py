"""The sheet: where each image is."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from dbray.ablate.sheet import CELL, Row, draw
from dbray.subjects.images import encode_png


def test_rows_and_columns_are_in_order():
    def plain(level):
        return encode_png(np.full((32, 32, 3), level, np.uint8))

    rows = [Row("on", [plain(10), plain(60)]), Row("off", [None, plain(110)])]
    pixels = np.asarray(Image.open(io.BytesIO(draw(["rex: a dog", "tom: a cat"], rows))))
    right, bottom = pixels.shape[1] - CELL // 2, pixels.shape[0] - CELL // 2
    found = [[int(pixels[bottom - up, right - left, 0]) for left in (CELL, 0)] for up in (CELL, 0)]
    assert found == [[10, 60], [255, 110]]
