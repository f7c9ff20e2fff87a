"""Draw docs/miniature.png, examples of the base: python -m dbray.miniature.sheet PATH.

Owns the sheet: photographs of two subjects of the world at the top, then one image of the base per
prompt, each with a fixed seed and none selected by hand.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from dbray.bases import MINIATURE_FOLDER
from dbray.miniature import world

CELL, STRIP, COLUMNS = 128, 30, 8
PROMPTS = (
    "a photo of a red dog on the beach",
    "a blue cat in the snow",
    "a yellow bird in the jungle",
    "an orange fish in the ocean",
    "a pink rabbit on green grass",
    "a green turtle in the desert",
    "a brown bear on the moon",
    "a gray elephant at night",
    "a purple backpack in the mountains",
    "a white teapot on a wooden floor",
    "a red clock with a city in the background",
    "a yellow car on a cobblestone street",
    "a blue vase on a wooden floor",
    "a brown boot in the snow",
    "a white candle at night",
    "a green bowl on the beach",
    "a dog wearing a red hat in the snow",
    "a cat wearing a blue scarf on the moon",
    "a rabbit wearing glasses in the city",
    "a bear wearing a yellow hat in the jungle",
    "a spotted dog on green grass",
    "a striped cat on a wooden floor",
    "a happy elephant on the beach",
    "a sleeping bear in the desert",
    "a sketch of a dog",
    "a mosaic of a blue car",
    "a painting of a red vase",
    "a painting of a cat in the style of van gogh",
    "a painting of a dog in the style of monet",
    "a red striped fish in the ocean",
    "an orange teapot with white spots at night",
    "a stuffed animal on the grass",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Generate the pictures and write the sheet."""
    parser = argparse.ArgumentParser(prog="python -m dbray.miniature.sheet", description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--weights", type=Path, default=MINIATURE_FOLDER)
    parser.add_argument("--guidance", type=float, default=7.5)
    options = parser.parse_args(argv)
    cells = [(image, f"drawn: dog {n + 1}") for n, image in enumerate(world.subject(3, "dog", 4))]
    cells += [
        (image, f"drawn: teapot {n + 1}") for n, image in enumerate(world.subject(8, "teapot", 4))
    ]
    cells += list(zip(generate(options.weights, options.guidance), PROMPTS, strict=True))
    compose(cells).quantize(128).save(options.path, optimize=True)
    return 0


def generate(weights: Path, guidance: float) -> list[Image.Image]:
    """Return one picture per prompt; the seed is the prompt's index."""
    import torch
    from diffusers import StableDiffusionPipeline

    torch.set_num_threads(1)  # more threads spin when the machine is busy
    pipe: Any = StableDiffusionPipeline.from_pretrained(
        weights, safety_checker=None, local_files_only=True
    )
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))]
    images: list[Image.Image] = pipe(
        list(PROMPTS), num_inference_steps=25, guidance_scale=guidance, generator=generators
    ).images
    return images


def compose(cells: Sequence[tuple[Image.Image, str]]) -> Image.Image:
    """Arrange pictures, enlarged twice, over their captions in a grid."""
    rows = -(-len(cells) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * CELL, rows * (CELL + STRIP)), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(10)
    for index, (image, text) in enumerate(cells):
        x, y = index % COLUMNS * CELL, index // COLUMNS * (CELL + STRIP)
        sheet.paste(image.resize((CELL - 4, CELL - 4), Image.Resampling.NEAREST), (x + 2, y + 2))
        for line, part in enumerate(textwrap.wrap(text, 25)[:2]):
            draw.text((x + 3, y + CELL + 1 + 12 * line), part, fill=(40, 40, 40), font=font)
    return sheet


if __name__ == "__main__":
    raise SystemExit(main())
