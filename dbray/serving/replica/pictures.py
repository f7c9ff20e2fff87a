"""Encodes pixels as files."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from dbray.serving.messages import OutputFormat


def encode(pixels: np.ndarray, output_format: OutputFormat, quality: int) -> bytes:
    """Encode uint8 pixels (H, W, 3). PNG is lossless, whatever the quality."""
    options = {"compress_level": 4} if output_format == "png" else {"quality": quality}
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=output_format.upper(), **options)
    return buffer.getvalue()
