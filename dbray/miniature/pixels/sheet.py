"""Draw docs/cascade.png, examples of the cascade: python -m dbray.miniature.pixels.sheet PATH.

Owns the sheet: of every prompt what the first stage draws, and beside it what the second makes of
it. Two subjects of the world with their fine detail come first, small and large in the same way.
Seeds are fixed, and none is selected by hand.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dbray.bases import MINIATURE_FOLDER
from dbray.miniature import world
from dbray.miniature.pixels.drawing import Cascade
from dbray.miniature.sheet import compose

PROMPTS = (
    "a photo of a red dog on the beach",
    "a blue cat in the snow",
    "a yellow bird in the jungle",
    "an orange fish in the ocean",
    "a pink rabbit on green grass",
    "a green turtle with fine checks in the desert",
    "a brown bear on the moon",
    "a gray elephant at night",
    "a purple backpack with the letter k in the mountains",
    "a white teapot with the letter e on a wooden floor",
    "a red clock with a city in the background",
    "a yellow car with pinstripes on a cobblestone street",
    "a blue vase with fine zigzags on a wooden floor",
    "a brown boot in the snow",
    "a white candle at night",
    "a green bowl with fine dots on the beach",
    "a dog wearing a red hat in the snow",
    "a bear wearing a yellow hat in the jungle",
    "a striped cat with fine dots on a wooden floor",
    "a painting of a red vase",
)
SUBJECTS = ((3, "dog"), (8, "teapot"))


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the pictures and write the sheet."""
    parser = argparse.ArgumentParser(
        prog="python -m dbray.miniature.pixels.sheet", description=__doc__
    )
    parser.add_argument("path", type=Path)
    parser.add_argument("--weights", type=Path, default=MINIATURE_FOLDER.with_name("cascade"))
    options = parser.parse_args(argv)
    cells = [cell for seed, noun in SUBJECTS for cell in _photographs(seed, noun)]
    cascade = Cascade(options.weights)
    cascade.sample_as_recommended()
    small, large = cascade.draw(PROMPTS, range(len(PROMPTS)))
    for low, high, prompt in zip(small, large, PROMPTS, strict=True):
        cells += _pair(Image.fromarray(low), Image.fromarray(high), prompt)
    compose(cells).quantize(192).save(options.path, optimize=True)
    return 0


def _photographs(seed: int, noun: str) -> list[tuple[Image.Image, str]]:
    scenes = world.subject_scenes(seed, noun, 2)
    cells: list[tuple[Image.Image, str]] = []
    for number, scene in enumerate(scenes, start=1):
        large = world.render(scene, fine=True)
        small = large.resize((32, 32), Image.Resampling.BOX)
        cells += _pair(small, large, f"drawn: {noun} {number}")
    return cells


def _pair(small: Image.Image, large: Image.Image, text: str) -> list[tuple[Image.Image, str]]:
    enlarged = Image.fromarray(np.asarray(small).repeat(2, axis=0).repeat(2, axis=1))
    return [(enlarged, text), (large, "")]


if __name__ == "__main__":
    raise SystemExit(main())
