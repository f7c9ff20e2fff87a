"""Named suites of prompts: the applications of the paper, and its benchmark.

Owns their texts, and which class nouns are living. A suite has a variant for living subjects and
one for objects. Sources: Ruiz et al. 2022 (arXiv 2208.12242), section 4.4 and figures 1, 7 to 10;
the prompts of `dreambench` are those of google/dreambooth (CC BY 4.0).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from dbray.spec.prompts import with_article

_LIVING = """
    animal ant baby bear bee bird boy butterfly calf camel cat chicken child cow crab creature deer
    dog dolphin dragon duck eagle elephant face fish fox frog giraffe girl goat goose hamster
    hedgehog horse insect kangaroo kitten koala lamb lion lizard man monkey mouse owl panda parrot
    penguin person pet pig pony puppy rabbit raccoon sheep snail snake spider squirrel swan tiger
    turtle whale wolf woman zebra
"""
LIVING = frozenset(_LIVING.split())
"""The last word of a class noun decides: "corgi dog" is living, "dog toy" is not."""


class Suite(NamedTuple):
    """Prompts with {subject}, for one application."""

    about: str
    objects: tuple[str, ...]
    live: tuple[str, ...]

    def prompts_for(self, class_noun: str) -> tuple[str, ...]:
        """Return the variant for a class noun."""
        return self.live if is_living(class_noun) else self.objects


def is_living(class_noun: str) -> bool:
    """Return whether a class noun names a living thing."""
    words = re.findall(r"[a-z]+", class_noun.lower())
    return bool(words) and words[-1] in LIVING


def _each(template: str, words: Iterable[str]) -> tuple[str, ...]:
    return tuple(template.replace("*", word) for word in words)


_PLACES = (
    "in the jungle", "in the snow", "on the beach", "on a cobblestone street",
    "on top of pink fabric", "on top of a wooden floor", "with a city in the background",
    "with a mountain in the background", "with a blue house in the background",
    "on top of a purple rug in a forest",
)  # fmt: skip
_PLACES_OF_OBJECTS = (
    "with a wheat field in the background", "with a tree and autumn leaves in the background",
    "with the Eiffel Tower in the background", "floating on top of water",
    "floating in an ocean of milk", "on top of green grass with sunflowers around it",
    "on top of a mirror", "on top of the sidewalk in a crowded street", "on top of a dirt road",
    "on top of a white rug",
)  # fmt: skip
_OUTFITS = (
    "wearing a red hat", "wearing a santa hat", "wearing a rainbow scarf",
    "wearing a black top hat and a monocle", "in a chef outfit", "in a firefighter outfit",
    "in a police outfit", "wearing pink glasses", "wearing a yellow shirt",
    "in a purple wizard outfit",
)  # fmt: skip
_CHANGED = ("red", "purple", "shiny", "wet", "cube shaped")
_LANDMARKS = ("the Acropolis", "the Eiffel Tower", "the Great Wall", "Mount Fuji")
_PAINTERS = ("Vincent van Gogh", "Johannes Vermeer", "Pierre-Auguste Renoir", "Rembrandt",
             "Leonardo da Vinci", "Katsushika Hokusai")  # fmt: skip
_ART = (
    *_each("a painting of a {subject} in the style of *", _PAINTERS),
    "a sculpture of a {subject} in the style of Michelangelo",
    "a watercolor painting of a {subject}",
    "a pencil drawing of a {subject}",
    "a pop art poster of a {subject}",
)
_VIEWS = _each(
    "a {subject} seen from *", ("the front", "the side", "the back", "the top", "the bottom")
)
_COLOURS = ("red", "purple", "blue", "green", "pink")
_MATERIALS = ("glass", "gold", "wood", "stone", "wool")
_SPECIES = ("bear", "panda", "koala", "lion", "hippo", "elephant")
_OBJECTS_CROSSED = ("teapot", "car", "sneaker", "cactus", "umbrella")

_PHOTOS = "a photo of a {subject} *"
_CROSS = "a cross of a {subject} and *"
_PROPERTIES = (*_each("a * {subject}", _COLOURS), *_each("a {subject} made of *", _MATERIALS))

SUITES: dict[str, Suite] = {
    "dreambench": Suite(
        "the 25 prompts of the benchmark of the paper",
        (*_each("a {subject} *", (*_PLACES, *_PLACES_OF_OBJECTS)),
         *_each("a * {subject}", _CHANGED)),
        (*_each("a {subject} *", (*_PLACES, *_OUTFITS)), *_each("a * {subject}", _CHANGED)),
    ),
    "recontextualisation": Suite(
        "in other places, at landmarks, in action",
        _each(_PHOTOS, (*(f"in front of {place}" for place in _LANDMARKS), "on the beach",
                        "in the snow", "on a table", "in a box", "under water", "on the moon")),
        _each(_PHOTOS, (*(f"in front of {place}" for place in _LANDMARKS), "on the beach",
                        "in the snow", "swimming in a pool", "sleeping on a bed",
                        "getting a haircut", "running in a park")),
    ),
    "art-renditions": Suite("by painters, sculptors and in other media", _ART, _ART),
    "expressions": Suite(
        "with other expressions; of an object, as a character with a face",
        _each("a * {subject} with a face", ("happy", "sad", "furious", "surprised", "sleepy")),
        _each("a * {subject}", ("happy", "sad", "furious", "surprised", "sleepy", "barking",
                                "depressed", "joyous", "screaming")),
    ),
    "novel-views": Suite("seen from other sides", _VIEWS, _VIEWS),
    "accessories": Suite(
        "with clothes and other things that fit its shape",
        _each("a {subject} *", ("wearing a red hat", "with a bow on top", "wrapped in a scarf",
                                "with stickers on it", "in a gift box")),
        _each("a {subject} *", (*_OUTFITS, "in a superman outfit", "with angel wings",
                                "in a pirate outfit")),
    ),
    "properties": Suite(
        "with other colours and materials, and crossed with something else",
        (*_PROPERTIES, *_each(_CROSS, map(with_article, _OBJECTS_CROSSED))),
        (*_PROPERTIES, *_each(_CROSS, map(with_article, _SPECIES))),
    ),
}  # fmt: skip


def prompts_of_suite(name: str) -> tuple[str, ...] | None:
    """Return the prompts of 'NAME-live' or 'NAME-objects', or of a suite without variants.

    None if `name` is not the name of a suite.

    Raises:
        ValueError: the suite has variants, and the name does not say which.
    """
    plain, _, variant = name.rpartition("-")
    if plain in SUITES and variant in ("live", "objects"):
        return SUITES[plain].live if variant == "live" else SUITES[plain].objects
    if name not in SUITES:
        return None
    suite = SUITES[name]
    if suite.live != suite.objects:
        raise ValueError(f"the suite {name} has two variants: write {name}-objects or {name}-live")
    return suite.live


def expand_suites(prompts: object) -> object:
    """Replace the names of suites in a list of prompts; one name may stand instead of a list."""
    listed = [prompts] if isinstance(prompts, str) else prompts
    if not isinstance(listed, list | tuple):
        return prompts
    found: list[object] = []
    for prompt in listed:
        suite = prompts_of_suite(prompt) if isinstance(prompt, str) else None
        found.extend(suite or [prompt])
    return found
