"""The drawn world: scenes of known truth, rendered at 64 x 64.

Owns what a scene is, how one is drawn at random, and rendering. Pillow and numpy only; every
random choice comes from a seeded generator, so a scene renders to the same pixels every time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from dbray.miniature.world.creatures import CREATURES, Coat, Proportions
from dbray.miniature.world.drawing import Colour, Figure, Pen, Shape, ellipse, polygon, shade
from dbray.miniature.world.faces import ACCESSORIES, EXPRESSIONS, accessory, face
from dbray.miniature.world.fine import fine_detail, marks, weave
from dbray.miniature.world.objects import OBJECTS
from dbray.miniature.world.places import PLACES, Scenery
from dbray.miniature.world.styles import STYLES, apply_style

SIZE = 64
SUPERSAMPLING = 3

LIVING: tuple[str, ...] = tuple(CREATURES)
CLASS_NOUNS: tuple[str, ...] = (*CREATURES, *OBJECTS)
PLACE_NAMES: tuple[str, ...] = tuple(PLACES)
PATTERNS: tuple[str, ...] = ("plain", "spots", "stripes", "patch")
FRONTAL = frozenset({"cat", "rabbit", "bear"})
COLOURS: dict[str, Colour] = {
    "red": (216, 36, 36),
    "orange": (247, 128, 20),
    "yellow": (250, 218, 40),
    "green": (46, 160, 62),
    "blue": (44, 92, 220),
    "purple": (134, 58, 186),
    "pink": (252, 140, 188),
    "brown": (122, 72, 38),
    "black": (44, 42, 48),
    "white": (244, 243, 240),
    "gray": (140, 141, 146),
}


@dataclass(frozen=True, slots=True)
class Identity:
    """The stable look of one thing, in all poses and places."""

    class_noun: str
    colour: str
    body: Colour
    second_colour: str
    second: Colour
    pattern: str
    pattern_seed: int
    proportions: Proportions


@dataclass(frozen=True, slots=True)
class Scene:
    """One identity in a place and pose; `place_seed` varies the place itself."""

    identity: Identity
    place: str
    place_seed: int
    x: float = 0.0
    y: float = 0.0
    scale: float = 1.0
    tilt: float = 0.0
    mirrored: bool = False
    accessory: str | None = None
    accessory_colour: str = "red"
    expression: str | None = None
    style: str | None = None
    from_behind: bool = False


def render(scene: Scene, fine: bool = False) -> Image.Image:
    """Draw a scene: a 64 x 64 RGB image, the same pixels for the same scene.

    With `fine`, the identity also has its fine detail, which a picture of 32 pixels cannot show.
    """
    side = SIZE * SUPERSAMPLING
    scenery = Scenery(side, np.random.default_rng(scene.place_seed))
    PLACES[scene.place](scenery)
    identity = scene.identity
    maker = CREATURES.get(identity.class_noun) or OBJECTS[identity.class_noun]
    figure = maker(Coat(identity.body, identity.second), identity.proportions)
    pattern = _pattern(identity)
    if fine:
        detail = fine_detail(identity.pattern_seed)
        pattern = [*weave(detail, identity.body), *pattern]
        figure.near.extend(marks(detail, identity.class_noun, figure.anchors, scene.mirrored))
    _dress(figure, scene)
    centre = (side * (0.5 + scene.x), side * (0.54 + scene.y))
    pen = Pen(scenery.image, centre, side * 0.39 * scene.scale, scene.tilt, scene.mirrored)
    pen.paint(figure, pattern, _contour(identity.body))
    image = scenery.image.resize((SIZE, SIZE), Image.Resampling.BOX)
    return apply_style(image, scene.style) if scene.style else image


def _dress(figure: Figure, scene: Scene) -> None:
    anchors = figure.anchors
    if anchors is None:
        return
    if scene.from_behind:
        figure.near = []
    else:
        figure.near.extend(face(anchors, scene.expression))
    if scene.accessory and not (scene.from_behind and scene.accessory == "glasses"):
        colour = COLOURS[scene.accessory_colour]
        figure.near.extend(accessory(scene.accessory, anchors, colour))


def _contour(body: Colour) -> Colour:
    # a light contour keeps a black cat visible at night
    return (205, 205, 215) if sum(body) < 200 else shade(body, 0.28)


def _pattern(identity: Identity) -> list[Shape]:
    rng = np.random.default_rng(identity.pattern_seed)
    fill = identity.second
    if identity.pattern == "spots":
        size = rng.uniform(0.1, 0.15)
        grid = [(x, y) for x in np.arange(-0.9, 1.0, 0.36) for y in np.arange(-0.9, 1.0, 0.36)]
        jitter = rng.uniform(-0.09, 0.09, (len(grid), 2))
        return [
            Shape(ellipse(x + dx, y + dy, size, size, num_points=10), fill)
            for (x, y), (dx, dy) in zip(grid, jitter, strict=True)
        ]
    if identity.pattern == "stripes":
        width, gap, slant = rng.uniform(0.1, 0.14), rng.uniform(0.32, 0.4), rng.uniform(-0.35, 0.35)
        starts = np.arange(-1.3 + rng.uniform(0, gap), 1.3, gap)
        return [
            Shape(
                polygon(
                    (x - slant, -1), (x - slant + width, -1), (x + slant + width, 1), (x + slant, 1)
                ),
                fill,
            )
            for x in starts
        ]
    if identity.pattern == "patch":
        x, y = rng.uniform(-0.5, 0.3), rng.uniform(-0.1, 0.5)
        return [Shape(ellipse(x, y, 0.42, 0.34, rng.uniform(-40, 40)), fill)]
    return []


def random_identity(rng: np.random.Generator, class_noun: str | None = None) -> Identity:
    """Draw an identity; its colours differ enough that a pattern is visible."""
    names = list(COLOURS)
    noun = class_noun or str(rng.choice(CLASS_NOUNS))
    colour = str(rng.choice(names))
    second = contrasting_colour(rng, colour)
    pattern = str(rng.choice(PATTERNS, p=(0.4, 0.2, 0.2, 0.2)))
    a, b, c, d = rng.uniform(-1, 1, 4).tolist()
    return Identity(
        noun,
        colour,
        _near(rng, COLOURS[colour]),
        second,
        _near(rng, COLOURS[second]),
        pattern,
        int(rng.integers(1 << 31)),
        (a, b, c, d),
    )


def contrasting_colour(rng: np.random.Generator, colour: str) -> str:
    """Draw a colour name far enough from `colour` that one is visible on the other."""
    far = [
        name
        for name, rgb in COLOURS.items()
        if np.abs(np.subtract(COLOURS[colour], rgb)).sum() > 170
    ]
    return str(rng.choice(far))


def _near(rng: np.random.Generator, colour: Colour) -> Colour:
    red, green, blue = np.clip(np.asarray(colour) + rng.integers(-12, 13, 3), 0, 255).tolist()
    return red, green, blue


def random_pose(rng: np.random.Generator, identity: Identity, place: str) -> Scene:
    """Put an identity in a place, without accessory and expression."""
    return Scene(
        identity,
        place,
        int(rng.integers(1 << 31)),
        x=float(rng.uniform(-0.08, 0.08)),
        y=float(rng.uniform(-0.03, 0.06)),
        scale=float(rng.uniform(0.86, 1.06)),
        tilt=float(rng.uniform(-10, 10)),
        mirrored=bool(rng.random() < 0.5),
    )


def random_scene(rng: np.random.Generator, class_noun: str | None = None) -> Scene:
    """Draw a scene of the training distribution: classes, places and colours are equally likely."""
    scene = random_pose(rng, random_identity(rng, class_noun), str(rng.choice(PLACE_NAMES)))
    if scene.identity.class_noun in LIVING:
        if rng.random() < 0.4:
            scene = replace(
                scene,
                accessory=str(rng.choice(ACCESSORIES)),
                accessory_colour=contrasting_colour(rng, scene.identity.colour),
            )
        if rng.random() < 0.3:
            scene = replace(scene, expression=str(rng.choice(EXPRESSIONS)))
        if scene.identity.class_noun in FRONTAL and rng.random() < 0.06:
            scene = replace(scene, from_behind=True, expression=None)
    if rng.random() < 0.14:
        scene = replace(scene, style=str(rng.choice(STYLES)))
    return scene


def scenes(seed: int) -> Iterator[Scene]:
    """Yield scenes of the training distribution, without end."""
    rng = np.random.default_rng(seed)
    while True:
        yield random_scene(rng)


def subject(
    seed: int, class_noun: str | None = None, num_images: int = 5, fine: bool = False
) -> list[Image.Image]:
    """Draw photographs of one identity, each in another place and pose.

    Args:
        seed: determines the identity and its photographs.
        class_noun: one of CLASS_NOUNS, or None to let the seed choose.
        num_images: how many photographs, at most one per place.
        fine: with the fine detail of the identity, as the cascade draws it.
    """
    return [render(scene, fine) for scene in subject_scenes(seed, class_noun, num_images)]


def subject_scenes(seed: int, class_noun: str | None = None, num_images: int = 5) -> list[Scene]:
    """Return the scenes of `subject`, for callers that also need the truth."""
    if not 1 <= num_images <= len(PLACE_NAMES):
        raise ValueError(f"num_images must be from 1 to {len(PLACE_NAMES)}, not {num_images}")
    rng = np.random.default_rng(seed)
    identity = random_identity(rng, class_noun or str(rng.choice(CLASS_NOUNS)))
    places = rng.permutation(PLACE_NAMES)[:num_images].tolist()
    return [random_pose(rng, identity, place) for place in places]


def write_photographs(
    folder: Path,
    num_subjects: int,
    num_classes: int = 4,
    seed: int = 0,
    num_images: int = 5,
    fine: bool = False,
) -> list[tuple[str, str]]:
    """Write `folder/<subject id>/NN.png` for several subjects; see `subject`.

    Returns:
        A (subject id, class noun) pair per subject, in order; classes alternate.
    """
    if num_subjects < 1:
        raise ValueError(f"num_subjects must be at least 1, not {num_subjects}")
    if not 1 <= num_classes <= len(CLASS_NOUNS):
        raise ValueError(f"num_classes must be from 1 to {len(CLASS_NOUNS)}, not {num_classes}")
    written: list[tuple[str, str]] = []
    for index in range(num_subjects):
        noun = CLASS_NOUNS[(index % num_classes) * 7 % len(CLASS_NOUNS)]
        subject_id = f"{noun}-{index:03d}"
        (folder / subject_id).mkdir(parents=True, exist_ok=True)
        drawn = subject(seed * 100_003 + index, noun, num_images, fine)
        for number, image in enumerate(drawn):
            image.save(folder / subject_id / f"{number:02d}.png")
        written.append((subject_id, noun))
    return written
