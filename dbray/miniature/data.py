"""The training data of the miniature: scenes rendered once to disk, captions, and textures.

Owns the training cache. Renders are uint8 in one .npy per shard, captions one JSON line per scene
with several wordings each, so that captions vary between epochs. Details mark where an accessory
is: small things add so little to a loss that they are learnt last. Textures replace photographs,
which the world does not have: only the autoencoder is trained on them.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from dbray.miniature.captions import caption
from dbray.miniature.world import (
    CLASS_NOUNS,
    PLACE_NAMES,
    SIZE,
    Scene,
    random_identity,
    random_pose,
    random_scene,
    render,
)

SHARD_SIZE = 4_000
NUM_CAPTIONS = 6
VIEWS = 6  # scenes of one identity
IDENTITIES_PER_SHARD = 600
CELL = 4  # pixels along a side of one latent
VISIBLE = 24  # smallest visible difference, of 255 levels


def write_shard(folder: Path, index: int) -> None:
    """Render one shard of scenes and textures unless it exists; the pixels are renamed last."""
    pixels_path = folder / f"scenes-{index:04d}.npy"
    if pixels_path.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([7, index])
    pixels = np.empty((SHARD_SIZE, SIZE, SIZE, 3), dtype=np.uint8)
    details = np.zeros((SHARD_SIZE, SIZE // CELL, SIZE // CELL), dtype=bool)
    lines: list[str] = []
    for row in range(SHARD_SIZE):
        scene = random_scene(rng)
        pixels[row] = np.asarray(render(scene))
        details[row] = accessory_cells(scene, pixels[row])
        lines.append(json.dumps([caption(scene, rng) for _ in range(NUM_CAPTIONS)]))
    (folder / f"captions-{index:04d}.jsonl").write_text("\n".join(lines) + "\n")
    textures = np.stack([texture(rng) for _ in range(SHARD_SIZE // 5)])
    save_array(folder / f"textures-{index:04d}.npy", textures)
    save_array(folder / f"details-{index:04d}.npy", details)
    save_array(pixels_path, pixels)


def write_identities(folder: Path, index: int) -> None:
    """Render a shard of identities in several scenes each, unless it exists."""
    path = folder / f"identities-{index:04d}.npy"
    if path.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([11, index])
    nouns = rng.integers(len(CLASS_NOUNS), size=IDENTITIES_PER_SHARD)
    pixels = np.empty((IDENTITIES_PER_SHARD, VIEWS, SIZE, SIZE, 3), dtype=np.uint8)
    for row, noun in enumerate(nouns):
        identity = random_identity(rng, CLASS_NOUNS[noun])
        for view in range(VIEWS):
            scene = random_pose(rng, identity, str(rng.choice(PLACE_NAMES)))
            pixels[row, view] = np.asarray(render(scene))
    save_array(folder / f"nouns-{index:04d}.npy", nouns)
    save_array(path, pixels)


def accessory_cells(scene: Scene, pixels: np.ndarray) -> np.ndarray:
    """Return 16 x 16 latents, True where the accessory of a rendered scene is visible."""
    if scene.accessory is None:
        return np.zeros((SIZE // CELL, SIZE // CELL), dtype=bool)
    without = np.asarray(render(replace(scene, accessory=None)))
    differs = np.abs(pixels.astype(int) - without) > VISIBLE
    return np.any(differs.reshape(SIZE // CELL, CELL, SIZE // CELL, CELL, 3), axis=(1, 3, 4))


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array under another name, then rename it: a kill never leaves a part of one."""
    partial = path.with_name(f"{path.stem}.part.npy")
    np.save(partial, array)
    partial.rename(path)


def shards(folder: Path, kind: str) -> list[Path]:
    """Return the finished shards of a kind, such as `scenes` or `captions`, in order."""
    return [path for path in sorted(folder.glob(f"{kind}-*")) if ".part" not in path.name]


def load_arrays(folder: Path, kind: str) -> list[np.ndarray]:
    """Map every shard of a kind into memory without reading it."""
    return [np.load(path, mmap_mode="r") for path in shards(folder, kind)]


def load_captions(folder: Path, num_shards: int) -> list[list[str]]:
    """Return the wordings of every scene of the first shards, in pixel order."""
    return [
        json.loads(line)
        for path in shards(folder, "captions")[:num_shards]
        for line in path.read_text().splitlines()
    ]


def texture(rng: np.random.Generator) -> np.ndarray:
    """Draw a 64 x 64 image with the statistics of a photograph instead of a drawing."""
    ground = _cloud(rng, rng.uniform(1.0, 2.2))
    other = _cloud(rng, rng.uniform(0.7, 2.2))
    edge = np.clip((_noise(rng, 1, rng.uniform(1.6, 2.6)) * rng.uniform(1.0, 14.0)) + 0.5, 0, 1)
    image = ground * (1 - edge) + other * edge
    if rng.random() < 0.5:  # light from one side, as in photographs but not in drawings
        rows, columns = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
        angle = rng.uniform(0, 2 * np.pi)
        light = 1 + rng.uniform(0.1, 0.5) * (np.cos(angle) * rows + np.sin(angle) * columns)
        image = image * light[..., None]
    return np.clip(image * 255.0, 0, 255).astype(np.uint8)


def _cloud(rng: np.random.Generator, roughness: float) -> np.ndarray:
    """Return coloured noise around a random colour: channels mostly vary together, as in nature."""
    base = rng.uniform(0.05, 0.95, 3)
    grey = _noise(rng, 1, roughness) * rng.uniform(0.03, 0.28)
    tint = _noise(rng, 3, roughness + 0.5) * rng.uniform(0.0, 0.1)
    return base + grey + tint


def _noise(rng: np.random.Generator, channels: int, roughness: float) -> np.ndarray:
    """Return noise with a 1/f^roughness amplitude spectrum, zero mean, unit deviation."""
    frequency = np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.rfftfreq(SIZE)[None]) * SIZE
    spectrum = rng.normal(size=(channels, *frequency.shape)) + 1j * rng.normal(
        size=(channels, *frequency.shape)
    )
    field = np.fft.irfft2(spectrum / np.maximum(frequency, 1.0) ** roughness, s=(SIZE, SIZE))
    field -= field.mean(axis=(1, 2), keepdims=True)
    field /= field.std(axis=(1, 2), keepdims=True) + 1e-9
    return field.transpose(1, 2, 0)


class Rows:
    """Rows of several mapped arrays under one index."""

    def __init__(self, arrays: list[np.ndarray]) -> None:
        self.arrays = arrays
        self.starts = np.cumsum([0, *(len(array) for array in arrays)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Return the rows at `indices`."""
        shard = np.searchsorted(self.starts, indices, side="right") - 1
        return np.stack(
            [self.arrays[s][i - self.starts[s]] for s, i in zip(shard, indices, strict=True)]
        )
