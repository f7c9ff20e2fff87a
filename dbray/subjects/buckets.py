"""Photographs of any aspect at about the area of a square: each is cut to the nearest bucket.

A bucket is a size whose sides are multiples of a step, and whose area is at most that of the
square, so that no photograph takes more memory. Pillow and numpy only.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

MOST_ASPECT = 2.0
"""A longer photograph is cut to this ratio of its sides."""
_STEPS_PER_SIDE = 16
"""At most, so that a bucket is never far from a photograph's aspect: 64 pixels of 1024."""


def step_of(resolution: int, latent_side: int) -> int:
    """Return the step of the sides for a base whose squares have latents of this side.

    It holds an even number of latents, which transformers take as patches of 2 x 2.
    """
    least = 2 * resolution // latent_side
    return least * math.ceil(resolution / _STEPS_PER_SIDE / least)


def buckets(resolution: int, step: int) -> list[tuple[int, int]]:
    """Return all buckets (width, height): for each width the greatest height."""
    widths = range(step, int(resolution * MOST_ASPECT) + 1, step)
    sizes = [(width, resolution**2 // width // step * step) for width in widths]
    return [(w, h) for w, h in sizes if h and 1 / MOST_ASPECT <= w / h <= MOST_ASPECT]


def bucket_of(size: tuple[int, int], resolution: int, step: int) -> tuple[int, int]:
    """Return the bucket nearest in aspect to a size (width, height), of equals the largest."""
    wanted = math.log(size[0] / size[1])

    def distance(bucket: tuple[int, int]) -> tuple[float, int]:
        width, height = bucket
        return round(abs(math.log(width / height) - wanted), 9), -width * height

    return min(buckets(resolution, step), key=distance)


def cut(image: Image.Image, resolution: int, step: int) -> np.ndarray:
    """Scale a photograph to cover its bucket and cut the rest evenly; uint8 HWC.

    Every pixel of the bucket averages its own area of the photograph.
    """
    width, height = bucket_of(image.size, resolution, step)
    scale = min(image.width / width, image.height / height)
    left = (image.width - width * scale) / 2
    top = (image.height - height * scale) / 2
    box = (left, top, left + width * scale, top + height * scale)
    # Cut and scaled at once: a thin strip would grow to gigabytes if it were scaled first.
    scaled = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS, box=box)
    return np.array(scaled, dtype=np.uint8)
