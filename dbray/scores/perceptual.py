"""A perceptual distance on real photographs: ST-LPIPS with AlexNet.

Owns the network; its weights are inside the package `stlpips-pytorch`, of which no code is imported
(see dbray.scores.embedders). It says how different two images look; it does not tell identities
apart, and is never reported as DINO. Source: Ghildyal and Liu 2022 (arXiv 2207.13686).

Shape suffixes: N images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from dbray.errors import BaseError

MAX_SIDE = 128
"""Larger images are shrunk: the first layer has a stride of 1 pixel."""
_FIRST, _SECOND, _THIRD = "net.slice1.0", "net.slice2.5", "net.slice3.9"
_FOURTH, _FIFTH = "net.slice4.11", "net.slice5.13"


class PerceptualDistance:
    """The distance in memory.

    Args:
        file: its weights.
        device: where it is computed.

    Raises:
        BaseError: the file cannot be read.
    """

    def __init__(self, file: Path, device: str = "cpu") -> None:
        try:
            # Tensors only: `weights_only` refuses code in the file.
            found = torch.load(file, map_location=device, weights_only=True)
        except Exception as exc:
            raise BaseError(f"{file} cannot be read: {exc}") from exc
        self._tensors: Mapping[str, Tensor] = found
        self._device = device

    @torch.no_grad()
    def spread(self, pixels: Sequence[np.ndarray]) -> float:
        """Return the mean distance of all pairs of N uint8 images (H, W, 3) of one size."""
        layers = self._features(_tensor(pixels).to(self._device))
        pairs = torch.combinations(torch.arange(len(pixels))).T
        found = [self._distances(number, one, pairs) for number, one in enumerate(layers)]
        return float(torch.stack(found).sum(dim=0).mean())

    def _distances(self, number: int, features_NCHW: Tensor, pairs: Tensor) -> Tensor:
        """Return the distance of each pair in one layer."""
        unit = functional.normalize(features_NCHW, dim=1, eps=1e-10)
        squares = (unit[pairs[0]] - unit[pairs[1]]) ** 2
        weights = self._tensors[f"lin{number}.model.1.weight"]
        return functional.conv2d(squares, weights).mean(dim=(1, 2, 3))

    def _features(self, images_NCHW: Tensor) -> list[Tensor]:
        known = self._tensors
        scaled = (images_NCHW - known["scaling_layer.shift"]) / known["scaling_layer.scale"]
        first = functional.relu(self._blur(self._conv(scaled, _FIRST, 2)))
        second = functional.relu(self._conv(self._pool(first), _SECOND, 2))
        third = functional.relu(self._conv(self._pool(second), _THIRD, 1))
        fourth = functional.relu(self._conv(third, _FOURTH, 1))
        return [first, second, third, fourth, functional.relu(self._conv(fourth, _FIFTH, 1))]

    def _conv(self, images_NCHW: Tensor, name: str, padding: int) -> Tensor:
        weight, bias = self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"]
        return functional.conv2d(images_NCHW, weight, bias, padding=padding)

    def _pool(self, images_NCHW: Tensor) -> Tensor:
        return self._blur(functional.max_pool2d(images_NCHW, 3, stride=1))

    def _blur(self, images_NCHW: Tensor) -> Tensor:
        """Halve the size after a blur, which makes the network tolerate shifts."""
        channels = images_NCHW.shape[1]
        line = torch.tensor([0.25, 0.5, 0.25], device=images_NCHW.device)
        kernel = (line[:, None] * line).expand(channels, 1, 3, 3)
        padded = functional.pad(images_NCHW, (2, 2, 2, 2), mode="reflect")
        return functional.conv2d(padded, kernel, stride=2, groups=channels)


def _tensor(pixels: Sequence[np.ndarray]) -> Tensor:
    """Return images from -1 to 1, with sides of at most MAX_SIDE: (N, 3, H, W)."""
    small = []
    for one in pixels:
        image = Image.fromarray(np.asarray(one))
        image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
        small.append(np.asarray(image, dtype=np.float32))
    return torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2) / 127.5 - 1
