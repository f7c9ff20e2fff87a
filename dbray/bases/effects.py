"""How far a word alone moves a base's predictions from those for the empty prompt.

Over the steps of a few samples of the empty prompt, from fixed noise. Each word is predicted in a
batch of its own, so that its effect does not depend on the other words. Knows neither Ray nor
storage.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dbray.bases import Backbone

NOUNS = ("dog", "cat", "car", "house", "tree", "chair", "bottle", "bird",
         "flower", "horse", "table", "boat", "shoe", "cup", "lamp", "book")  # fmt: skip
"""Common nouns, by which effects are judged."""
_SEEDS = (0, 1)
_STEPS = 4


@torch.no_grad()
def effects_of(backbone: Backbone, words: Sequence[str]) -> dict[str, float]:
    """Return the effect of each word: the mean squared change of a prediction, relative to it."""
    family = backbone.base.family
    sampler = "ddim" if "ddim" in family.samplers else family.samplers[0]
    scheduler = backbone.scheduler(sampler, _STEPS)
    generators = [torch.Generator().manual_seed(seed) for seed in _SEEDS]
    noise = [torch.randn(backbone.latent_shape(), generator=one) for one in generators]
    latents = torch.stack(noise) * float(scheduler.init_noise_sigma)
    conditions = {word: backbone.condition([word] * len(_SEEDS)) for word in ("", *words)}
    totals = dict.fromkeys(words, 0.0)
    for timestep in scheduler.timesteps:
        inputs, times = scheduler.scale_model_input(latents, timestep), timestep.repeat(len(_SEEDS))
        empty = backbone.denoise(inputs, times, conditions[""])
        for word in words:
            found = backbone.denoise(inputs, times, conditions[word])
            totals[word] += _change(family.targeted(found), family.targeted(empty))
        latents = scheduler.step(empty, timestep, latents, generator=generators).prev_sample
    return {word: total / _STEPS for word, total in totals.items()}


def _change(prediction: Tensor, empty: Tensor) -> float:
    return float((prediction - empty).square().mean() / empty.square().mean())
