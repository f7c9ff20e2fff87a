"""The nearest size that a base can draw."""

from __future__ import annotations

import pytest

from dbray.serving.replica.sizes import Sizes


@pytest.mark.parametrize(("resolution", "size", "nearest"), [
    (512, (1024, 1024), (1024, 1024)),
    (512, (1792, 1024), (1024, 576)),
    (512, (2048, 2048), (1024, 1024)),
    (512, (500, 520), (512, 512)),
    (512, (1, 9999), (256, 1024)),
    (32, (1024, 1024), (64, 64)),
])  # fmt: skip
def test_the_nearest_size_keeps_the_aspect_ratio_if_possible(resolution, size, nearest):
    sizes = Sizes.of(resolution, resolution // 8)
    assert sizes.nearest(size) == nearest
    assert sizes.nearest(nearest) == nearest
