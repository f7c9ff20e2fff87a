"""Detail that a picture of the first stage cannot hold.

Owns the split of a picture by frequency. A picture of half the side has no frequency above a
quarter of a cycle per pixel; what is above it in the large picture is super-resolution's own.
"""

from __future__ import annotations

import numpy as np

NYQUIST = 0.25
"""Of the first stage's pictures, in cycles per pixel of the second's."""


def fine_band(images: np.ndarray) -> np.ndarray:
    """Return the part of N, H, W, 3 images above the first stage's Nyquist frequency, as floats."""
    pixels = images.astype(np.float64)
    rows, columns = (np.abs(np.fft.fftfreq(size)) for size in images.shape[1:3])
    is_fine = np.maximum(rows[:, None], columns[None]) > NYQUIST
    spectrum = np.fft.fft2(pixels, axes=(1, 2)) * is_fine[None, :, :, None]
    return np.fft.ifft2(spectrum, axes=(1, 2)).real


def fine_error(
    images: np.ndarray, truths: np.ndarray, where: np.ndarray | None = None
) -> np.ndarray:
    """Return the error of each image's fine band as a share of the true band's energy.

    0 is right, 1 is as good as no fine detail at all, and unrelated detail has about 2. With
    `where` (N, H, W), only these pixels count.
    """
    truth = fine_band(truths)
    counted = np.ones(truth.shape[:3]) if where is None else where
    error = np.square(fine_band(images) - truth).sum(axis=3) * counted
    energy = np.square(truth).sum(axis=3) * counted
    return error.sum(axis=(1, 2)) / energy.sum(axis=(1, 2))
