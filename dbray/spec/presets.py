"""Recipes by name, each with its source; a job selects one by `recipe: {preset: hackathon}`.

A preset sets values in sections of a job; the job's own values have priority. Its name is not part
of any fingerprint: only the values are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from dbray.spec.methods import Kind

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Preset:
    """Values by section of a job, and where they were published."""

    source: str
    recipe: Values = field(default_factory=dict)
    prior: Values = field(default_factory=dict)
    previews: Values = field(default_factory=dict)

    def values(self, section: str) -> Values:
        """Return the values of a section, by its name; empty if the preset has none for it."""
        found: Values = getattr(self, section, {})
        return found


def _of_method(kind: str) -> Preset:
    return Preset("the recipe of the base's family for this method", recipe={"method": kind})


PRESETS: Mapping[str, Preset] = {
    "paper": Preset(
        "Ruiz et al. 2022 (arXiv 2208.12242), section 4: about 1000 iterations, 5e-6 for Stable "
        "Diffusion, lambda 1, about 1000 class images",
        recipe={"method": "full", "learning_rate": 5e-6, "steps": 1000, "prior_weight": 1.0},
        prior={"kind": "images", "count": 1000, "prompt": "a {class}"},
    ),
    "stable-diffusion": Preset(
        "the README of diffusers' examples/dreambooth, training with prior preservation",
        recipe={
            "method": "full", "learning_rate": 5e-6, "steps": 800, "batch_size": 1,
            "prior_weight": 1.0,
        },
        prior={"kind": "images", "count": 200},
    ),
    "hackathon": Preset(
        "Hugging Face's DreamBooth Hackathon (diffusion-models-class, 2022): 2e-6 without class "
        "images, guidance 7 to 11; 800 steps, as https://huggingface.co/blog/dreambooth advises",
        recipe={"method": "full", "learning_rate": 2e-6, "steps": 800, "prior_weight": 0.0},
        previews={"guidance": 9.0},
    ),
    "campus": Preset(
        "a teaching set-up for one small GPU: Stable Diffusion 2, 4 photographs, 12 class images",
        recipe={"method": "full"},
        prior={"kind": "images", "count": 12},
    ),
    **{kind: _of_method(kind) for kind in get_args(Kind)},
}  # fmt: skip


def check_preset(name: str) -> str:
    """Return a preset's name. Raises ValueError that lists the presets."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; the presets are: {', '.join(PRESETS)}")
    return name
