"""Training on random pictures, without lanes: the results of a method on a tiny base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from dbray import bases
from dbray.method.methods import method_of
from dbray.spec.recipe import Recipe
from dbray.spec.resources import Resources
from dbray.training.batches import Share
from dbray.training.curve import LossPoint
from dbray.training.data import (
    Latents,
    TrainingData,
    encode_subject,
    instance_prompts,
    low_images,
    shrunk,
)
from dbray.training.engine import make_engine
from dbray.training.loop import Progress, finetune

CPU = torch.device("cpu")
IDENTIFIER = "zb"
PLAIN, ALONE = Resources(), Share()
SIDE = 32
"""Side of the pictures, in pixels."""


def recipe_of(method, **changes) -> Recipe:
    fields = {"steps": 4, "learning_rate": 1e-2, "publish_precision": "fp32"} | changes
    return Recipe.model_validate({"method": method, **fields})


class Trained:
    """A backbone whose network was trained, its engine, its loss curve and the model's files."""

    def __init__(
        self,
        base: bases.Base,
        recipe: Recipe,
        checkpoint: int | None = None,
        resources: Resources = PLAIN,
        share: Share = ALONE,
        device: torch.device = CPU,
        noise_level: int | None = None,
    ) -> None:
        compute = bases.Compute(str(device), recipe.precision, visits=True)
        self.backbone = backbone = bases.load(base, compute)
        self.method = method = method_of(recipe.method)
        self.network = method.network(backbone, recipe)
        self.engine = make_engine(
            self.network, recipe, resources, device, method.rates(self.network, recipe)
        )
        self.engine.assign(method.begin(self.network, IDENTIFIER))
        self.begun = {name: p.detach().clone() for name, p in self.network.named_parameters()}
        pixels = np.random.default_rng(0).integers(0, 255, (4, SIDE, SIDE, 3), dtype=np.uint8)
        views, views_of_image = encode_subject(
            backbone, [[image] for image in pixels], recipe, noise_level
        )
        prior = Latents(*backbone.encode(pixels[::-1].copy()))
        if noise_level is not None:
            low = shrunk(pixels[::-1], base.scale)
            prior = replace(prior, low=low_images(backbone, low, noise_level))
        self.data = data = TrainingData(
            "rex",
            views,
            views_of_image,
            method.condition(
                backbone, recipe, instance_prompts(IDENTIFIER, "dog", None, recipe, 4)
            ),
            prior,
            method.condition(backbone, recipe, ["a dog"]),
        )
        saved = []

        def on_step(step: int, progress: Callable[[], Progress]) -> None:
            if step == checkpoint:
                saved.append((self.engine.state(), progress()))

        def steps(resume: Progress) -> tuple[LossPoint, ...]:
            return finetune(
                self.engine, backbone.schedule.to(device), data, recipe, share=share,
                resume=resume, on_step=on_step, after_step=method.after_step,
            )  # fmt: skip

        self.curve = steps(Progress())
        weights = self.engine.weights()
        self.files = method.publish(self.network, weights, recipe) if weights else {}
        if saved:
            [(state, progress)] = saved
            self.engine.reset()
            self.engine.assign(method.begin(self.network, IDENTIFIER))
            self.engine.load_state(state)
            steps(progress)
            self.resumed = method.publish(self.network, self.engine.weights(), recipe)


def contents_of(files: dict[str, bytes]) -> dict[str, torch.Tensor]:
    return {name: torch.frombuffer(bytearray(data), dtype=torch.uint8)
            for name, data in files.items()}  # fmt: skip


def prediction_of(backbone: bases.Backbone) -> torch.Tensor:
    """Return the present prediction of a base for two fixed rows."""
    shape = backbone.latent_shape((SIDE, SIDE))
    latents = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    condition = backbone.condition([f"a {IDENTIFIER} dog", "a dog"])
    if backbone.base.family.is_super_resolution:
        side = SIDE // backbone.base.scale
        low = np.random.default_rng(1).integers(0, 255, (2, side, side, 3), dtype=np.uint8)
        clean = condition.with_tensor("low", backbone.low_images(low))
        condition = backbone.noising(0).noised(clean, torch.zeros(()))
    return backbone.denoise(latents, torch.tensor([10, 500]), condition)


def check_published(base: bases.Base, trained: Trained, least: float = 1e-4) -> None:
    """Assert that the published files predict as the trained network, and differ from the base.

    `least` is the smallest change of the prediction that counts as a difference.
    """
    other = bases.load(base)
    expected, untouched = prediction_of(trained.backbone), prediction_of(other)
    weights = trained.method.read(contents_of(trained.files), other.resident.layouts)
    other.resident.put(weights)
    torch.testing.assert_close(prediction_of(other), expected, rtol=1e-4, atol=1e-5)
    assert (expected - untouched).abs().max() > least
    other.resident.put(None)
    assert torch.equal(prediction_of(other), untouched)
