"""The training data of the cascade: scenes drawn with their fine detail, and captions.

Owns the cache: uint8 renders in one .npy per shard, captions one JSON line per scene. The picture
of the first stage is the same one, its pixels averaged two by two.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.nn import functional

from dbray.miniature.captions import fine_caption
from dbray.miniature.data import NUM_CAPTIONS, SHARD_SIZE, save_array
from dbray.miniature.world import SIZE, random_scene, render

KIND = "fine"


def write_shard(folder: Path, index: int) -> None:
    """Render one shard unless it exists; the pixels are renamed last."""
    path = folder / f"{KIND}-{index:04d}.npy"
    if path.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([13, index])
    pixels = np.empty((SHARD_SIZE, SIZE, SIZE, 3), dtype=np.uint8)
    lines: list[str] = []
    for row in range(SHARD_SIZE):
        scene = random_scene(rng)
        pixels[row] = np.asarray(render(scene, fine=True))
        lines.append(json.dumps([fine_caption(scene, rng) for _ in range(NUM_CAPTIONS)]))
    (folder / f"captions-{KIND}-{index:04d}.jsonl").write_text("\n".join(lines) + "\n")
    save_array(path, pixels)


def load_captions(folder: Path, num_shards: int) -> list[str]:
    """Return NUM_CAPTIONS wordings of every scene of the first shards, in pixel order."""
    paths = sorted(folder.glob(f"captions-{KIND}-*.jsonl"))[:num_shards]
    lines = [line for path in paths for line in path.read_text().splitlines()]
    return [wording for line in lines for wording in json.loads(line)]


def small_images(large: Tensor) -> Tensor:
    """Return the pictures of the first stage, each pixel the mean of four."""
    return functional.avg_pool2d(large, 2)
