"""Buckets: photographs keep their aspect at about the area of a square."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dbray.subjects.buckets import bucket_of, buckets, cut, step_of


def test_buckets_of_1024_are_multiples_of_64_and_none_is_larger_than_the_square():
    step = step_of(1024, 128)
    assert step == 64
    found = buckets(1024, step)
    assert (1024, 1024) in found
    assert (1216, 832) in found
    assert (832, 1216) in found
    for width, height in found:
        assert width % 64 == height % 64 == 0
        assert 0.85 * 1024**2 < width * height <= 1024**2
        assert 0.5 <= width / height <= 2


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((4032, 3024), (1152, 896)),
        ((3024, 4032), (896, 1152)),
        ((6000, 4000), (1216, 832)),
        ((777, 777), (1024, 1024)),
        ((9000, 100), (1408, 704)),
    ],
)
def test_the_nearest_aspect_is_chosen(size, expected):
    assert bucket_of(size, 1024, 64) == expected


@pytest.mark.parametrize(("resolution", "latent_side", "step"), [
    (1024, 128, 64), (1024, 64, 64), (512, 64, 32), (768, 96, 48), (32, 8, 8), (64, 16, 8),
])  # fmt: skip
def test_sides_hold_an_even_number_of_latents(resolution, latent_side, step):
    assert step_of(resolution, latent_side) == step
    assert step % (2 * resolution // latent_side) == 0


def test_a_photograph_is_cut_evenly_at_both_ends_and_not_stretched():
    image = np.zeros((100, 300, 3), np.uint8)
    image[:, :80] = (255, 0, 0)
    image[:, -80:] = (0, 0, 255)
    found = cut(Image.fromarray(image), 64, 8)
    assert found.shape == (48, 80, 3)
    # 167 of 300 columns are left, of which the first and the last 13 are coloured: 6 of 80.
    assert (found[:, :3] == (255, 0, 0)).all()
    assert (found[:, -3:] == (0, 0, 255)).all()
    assert (found[:, 12:-12] == 0).all()


def test_every_pixel_averages_its_area():
    noise = np.random.default_rng(0).integers(0, 255, (640, 960, 3), dtype=np.uint8)
    found = cut(Image.fromarray(noise), 64, 8).astype(float)
    assert found.std() < 0.2 * noise.std()
    assert abs(found.mean() - noise.mean()) < 1
