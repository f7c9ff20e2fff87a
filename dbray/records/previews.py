"""The stored previews of a model: which files there are, and what each shows.

Owns the layout of the annex "previews": `N.png` is the model's image for prompt N, `base-N.png` the
untouched base's, `photo-N.webp` a small copy of photograph N, and `previews.json` describes how
they were sampled. Does not know how images are sampled or displayed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dbray.records.annexes import Annex
from dbray.spec.prompts import fill_prompt
from dbray.spec.sections import Previews
from dbray.storage.store import Store

DESCRIPTION = "previews.json"

_ANNEX = "previews"
_PICTURES = (".png", ".webp")
_PHOTOGRAPH = "photo-"

Files = dict[str, bytes]


@dataclass(frozen=True)
class Preview:
    """One prompt: the prompts for the model and the base, and their images if they exist.

    `seed` is text: its 63 bits do not fit a number in a browser.
    """

    image: bytes | None
    base_image: bytes | None
    prompt: str
    base_prompt: str
    seed: str | None


def annex(store: Store, model: str) -> Annex:
    """Return the previews of a model, given as 'id@revision'."""
    return Annex(store, model, _ANNEX)


def name_images(pngs: Iterable[bytes]) -> Files:
    """Name the images of a model, given in prompt order."""
    return {f"{number}.png": png for number, png in enumerate(pngs)}


def name_base_images(pngs: Iterable[bytes]) -> Files:
    """Name the images of the base, given in prompt order."""
    return {f"base-{number}.png": png for number, png in enumerate(pngs)}


def name_photographs(webps: Iterable[bytes]) -> Files:
    """Name the small copies of the photographs, given in order."""
    return {f"{_PHOTOGRAPH}{number}.webp": webp for number, webp in enumerate(webps)}


def describe(previews: Previews, class_noun: str, identifier: str, seeds: Sequence[int]) -> Files:
    """Make the description file: it differs if and only if the previews would differ."""
    value = {
        "prompts": [fill_prompt(p, class_noun, identifier) for p in previews.prompts],
        "base_prompts": [fill_prompt(p, class_noun) for p in previews.prompts],
        "sampler": previews.sampler,
        "steps": previews.steps,
        "guidance": previews.guidance,
        "seed": previews.seed,
        "seeds": list(seeds),
    }
    return {DESCRIPTION: json.dumps(value, indent=1, ensure_ascii=False).encode()}


def is_picture(name: str) -> bool:
    """Return whether a file is an image."""
    return name.endswith(_PICTURES)


def prompts_of(description: bytes) -> list[str]:
    """Return the prompts of the numbered images. Raises ValueError for another file."""
    return _texts(_parse(description), "prompts")


def pictures_of(files: Mapping[str, bytes]) -> list[Preview]:
    """Return the previews in prompt order; an empty list without a description.

    Raises:
        ValueError: the description is invalid.
    """
    if DESCRIPTION not in files:
        return []
    about = _parse(files[DESCRIPTION])
    prompts = _texts(about, "prompts")
    base_prompts = _texts(about, "base_prompts") or prompts
    seeds = _texts(about, "seeds") or [None] * len(prompts)
    return [
        Preview(files.get(f"{number}.png"), files.get(f"base-{number}.png"), *asked)
        for number, asked in enumerate(zip(prompts, base_prompts, seeds, strict=True))
    ]


def photographs_of(files: Mapping[str, bytes]) -> list[bytes]:
    """Return the small copies of the photographs, in order."""
    names = sorted((len(name), name) for name in files if name.startswith(_PHOTOGRAPH))
    return [files[name] for _, name in names]


def _parse(description: bytes) -> dict[str, Any]:
    value = json.loads(description)
    if not isinstance(value, dict) or "prompts" not in value:
        raise ValueError(f"{DESCRIPTION} has no prompts")
    return value


def _texts(about: Mapping[str, Any], name: str) -> list[str]:
    value = about.get(name, [])
    if not isinstance(value, list):
        raise ValueError(f"{name} in {DESCRIPTION} is not a list")
    return [str(one) for one in value]
