"""Blur, exposure and copies, on pictures with planted faults and on real photographs."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from dbray.miniature import world
from dbray.subjects import validation
from dbray.subjects.looks import look_at

FAULTS = {
    "blurred": [lambda image, r=r: image.filter(ImageFilter.GaussianBlur(r * side_of(image) / 512))
                for r in (2, 4, 8)],
    "overexposed": [lambda image: image.point(lambda level: min(255, 40 + 4 * level))],
    "underexposed": [lambda image: image.point(lambda level: level // 8)],
}  # fmt: skip


def side_of(image: Image.Image) -> int:
    return min(image.size)


def scene(seed: int, side: int = 400) -> Image.Image:
    """Draw sharp things on a ground with fine texture."""
    rng = np.random.default_rng(seed)
    pixels = rng.normal(120, 12, (side, side, 3))
    for _ in range(12):
        x, y, width, height = rng.integers(0, side // 2, 4)
        pixels[y : y + height + 20, x : x + width + 20] = rng.integers(30, 220, 3)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture
def write(tmp_path):
    """Write the images of one subject; return what validation says of them."""

    def write(*pictures: Image.Image) -> list[str]:
        folder = tmp_path / "rex"
        folder.mkdir()
        for number, picture in enumerate(pictures):
            picture.save(folder / f"{number}.png")
        found = validation.validate(str(tmp_path), "dog").problems
        return [problem.what.replace(f"{folder}/", "") for problem in found]

    return write


@pytest.mark.parametrize(("fault", "make"), [
    (fault, make) for fault, makes in FAULTS.items() for make in makes
])  # fmt: skip
def test_a_fault_is_reported_in_one_line(write, fault, make):
    pictures = [scene(seed) for seed in range(5)]
    pictures[1], pictures[3] = make(pictures[1]), make(pictures[3])
    [what] = write(*pictures)
    assert what.startswith(f"1.png and 1 others are {fault}")


def test_sharp_pictures_have_no_faults(write):
    assert write(*[scene(seed) for seed in range(3)]) == []


def test_the_drawn_world_has_no_faults(write):
    assert write(*world.subject(3, "dog", 5)) == []


def test_the_width_of_edges_is_that_at_the_size_of_training():
    picture = scene(0, 1024).filter(ImageFilter.GaussianBlur(6))
    half = picture.resize((512, 512), Image.Resampling.LANCZOS)
    assert look_at(half).edge_width == pytest.approx(look_at(picture).edge_width, rel=0.05)


def test_copies_are_found_on_the_square_that_training_sees(write):
    """The same middle between other edges."""
    middle, sides = scene(1, 200), (scene(2, 200), scene(3, 200))
    pictures = []
    for side in sides:
        wide = side.resize((400, 200))
        wide.paste(middle, (100, 0))
        pictures.append(wide)
    assert write(*pictures, scene(4)) == ["0.png and 1.png look almost the same"]


@pytest.mark.parametrize("subject", ["red_cartoon", "dog7", "berry_bowl"])
def test_faults_planted_in_real_photographs_are_found(dreambooth, write, subject):
    file = min((dreambooth / "dataset" / subject).glob("*.jpg"))
    with Image.open(file) as image:
        image.thumbnail((600, 600))
        makes = [make for makes in FAULTS.values() for make in makes]
        whats = write(*[make(image) for make in makes])
    assert any(what.startswith("0.png and 2 others are blurred") for what in whats)
    assert any(what.startswith("3.png is overexposed") for what in whats)
    assert any(what.startswith("4.png is underexposed") for what in whats)
