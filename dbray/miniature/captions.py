"""Captions in the grammar of the DreamBooth prompts, and prompts with a known truth.

Owns the description of a scene in words. Parts are omitted at random, so that the model learns what
each word does, and what a scene looks like when it is not described.
Source: Ruiz et al. 2022 (arXiv 2208.12242), section 4.1 and the released prompt list.
"""

from __future__ import annotations

import numpy as np

from dbray.miniature.world import Scene
from dbray.miniature.world.fine import LETTER_PLACES, fine_detail

PLACE_PHRASES: dict[str, tuple[str, ...]] = {
    "grass": ("on the grass", "on green grass", "on top of green grass", "in a meadow"),
    "beach": ("on the beach", "on the beach", "at the beach", "on the sand by the sea"),
    "snow": ("in the snow", "in the snow", "in winter", "with snow in the background"),
    "night": ("at night", "at night", "under the stars", "in the dark night"),
    "desert": ("in the desert", "in the desert", "with a desert in the background"),
    "city": (
        "in the city",
        "with a city in the background",
        "with a city in the background",
        "in a crowded street in the city",
    ),
    "wooden floor": (
        "on a wooden floor",
        "on the wooden floor",
        "on top of a wooden floor",
        "at home on a wooden floor",
    ),
    "ocean": ("in the ocean", "in the ocean", "under water", "in the water"),
    "jungle": ("in the jungle", "in the jungle", "in a forest", "in the green jungle"),
    "moon": ("on the moon", "on the moon", "in space", "on the surface of the moon"),
    "mountain": (
        "with a mountain in the background",
        "in the mountains",
        "with a mountain in the background",
        "with mountains in the background",
    ),
    "cobblestone street": (
        "on a cobblestone street",
        "on a cobblestone street",
        "on the cobblestones",
        "in an old street",
    ),
}
ALIASES: dict[str, tuple[str, ...]] = {"bear": ("stuffed animal", "teddy bear"), "car": ("toy",)}
PATTERN_WORDS = {"spots": "spotted", "stripes": "striped", "patch": "patched"}
WEAVE_PHRASES = {
    "smooth": "",
    "pinstripes": "with pinstripes",
    "dots": "with fine dots",
    "checks": "with fine checks",
    "zigzags": "with fine zigzags",
}
STYLE_PREFIXES: dict[str, tuple[str, ...]] = {
    "sketch": ("a sketch of", "a pencil drawing of", "a black and white sketch of"),
    "mosaic": ("a mosaic of", "a mosaic of", "pixel art of"),
    "painting": ("a painting of", "an oil painting of", "a painting of"),
    "monet": ("a painting of",),
    "van gogh": ("a painting of",),
}
STYLE_SUFFIXES: dict[str, tuple[str, ...]] = {
    "monet": ("in the style of monet", "in the style of claude monet"),
    "van gogh": ("in the style of van gogh", "in the style of vincent van gogh"),
}
PHOTO_PREFIXES = (
    "a photo of",
    "a photo of",
    "a photo of",
    "",
    "",
    "",
    "a picture of",
    "an image of",
    "a photograph of",
)


def caption(scene: Scene, rng: np.random.Generator, detail: str = "") -> str:
    """Describe a scene, omitting some of what is visible; `detail` follows its subject."""
    words = [_prefix(scene, rng), _subject(scene, rng), detail]
    if scene.accessory and rng.random() < 0.9:
        words.append(_accessory(scene, rng))
    style = _pick(rng, STYLE_SUFFIXES.get(scene.style or "", ("",)))
    place = _pick(rng, PLACE_PHRASES[scene.place]) if rng.random() < 0.8 else ""
    behind = "seen from behind" if scene.from_behind else ""
    words += [behind, style, place] if rng.random() < 0.5 else [behind, place, style]
    return " ".join(word for word in words if word)


def fine_caption(scene: Scene, rng: np.random.Generator) -> str:
    """Describe a scene that is drawn with its fine detail, which is named in two of five."""
    fine = fine_detail(scene.identity.pattern_seed)
    options = [WEAVE_PHRASES[fine.weave]]
    if scene.identity.class_noun in LETTER_PLACES:
        options.append(f"with the letter {fine.letter}")
    named = scene.style is None and rng.random() < 0.4
    return caption(scene, rng, _pick(rng, tuple(options)) if named else "")


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _prefix(scene: Scene, rng: np.random.Generator) -> str:
    if scene.style:
        return _pick(rng, STYLE_PREFIXES[scene.style])
    if scene.scale > 1.0 and rng.random() < 0.2:
        return "a close-up photo of"
    return _pick(rng, PHOTO_PREFIXES)


def _subject(scene: Scene, rng: np.random.Generator) -> str:
    identity = scene.identity
    noun = identity.class_noun
    if noun in ALIASES and rng.random() < 0.12:
        noun = _pick(rng, ALIASES[noun])
    adjectives: list[str] = []
    if scene.expression and rng.random() < 0.9:
        adjectives.append(scene.expression)
    # a sketch has no colour: a colour word would teach that such words have no effect
    coloured = scene.style != "sketch" and rng.random() < 0.65
    pattern = identity.pattern if identity.pattern != "plain" and rng.random() < 0.55 else None
    tail = ""
    if coloured:
        adjectives.append(identity.colour)
    if pattern:
        if coloured and pattern != "patch" and rng.random() < 0.4:
            tail = f"with {identity.second_colour} {pattern}"
        else:
            adjectives.append(PATTERN_WORDS[pattern])
    phrase = " ".join([*adjectives, noun, *([tail] if tail else [])])
    article = "an" if phrase[0] in "aeiou" else "a"
    return f"{article} {phrase}"


def _accessory(scene: Scene, rng: np.random.Generator) -> str:
    colour = ""
    if scene.style != "sketch" and rng.random() < 0.5:
        colour = f"{scene.accessory_colour} "
    if scene.accessory == "glasses":
        return f"wearing {colour}glasses"
    article = "an" if colour.startswith("o") else "a"
    return f"wearing {article} {colour}{scene.accessory}"
