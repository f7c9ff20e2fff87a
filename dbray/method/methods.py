"""The methods of fine-tuning: what each trains, publishes, and loads into a resident model.

A method is one file in this folder, named after its `kind`, with its METHOD. Its settings are in
`dbray.spec.methods`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Protocol

from torch import Tensor, nn

from dbray.bases import Backbone, Base
from dbray.bases.condition import Condition
from dbray.bases.resident import Layout, Weights
from dbray.spec.methods import MethodSettings
from dbray.spec.recipe import Recipe
from dbray.training.engine import Engine
from dbray.training.rates import Rate


class Method(Protocol):
    """The interface of a method of fine-tuning."""

    def network(self, backbone: Backbone, recipe: Recipe, num_slots: int = 1) -> nn.Module:
        """Make the module to train; an engine trains its parameters that require gradients.

        With several slots, these are stacked along their first dimension, in equal shares.
        """
        ...

    def assign(self, network: nn.Module, rows_B: Tensor | None) -> None:
        """Set the slot of each row of the next batches; None: equal shares in slot order."""

    def rates(self, network: nn.Module, recipe: Recipe) -> Mapping[str, Rate]:
        """Return the rates of parameters that do not use the recipe's learning rate."""
        ...

    def condition(self, backbone: Backbone, recipe: Recipe, prompts: Sequence[str]) -> Condition:
        """Encode N prompts as the N rows of the network's condition."""
        ...

    def begin(self, network: nn.Module, identifier: str, slot: int = 0) -> Mapping[str, Tensor]:
        """Prepare a slot for a subject; return parameters with other initial values, by name.

        Raises:
            TrainError: the identifier cannot be trained.
        """
        ...

    def after_step(self, engine: Engine) -> None:
        """Change the engine's parameters after every step, if the method needs it."""
        ...

    def publish(
        self, network: nn.Module, weights: Mapping[str, Tensor], recipe: Recipe, slot: int = 0
    ) -> dict[str, bytes]:
        """Make the files of a model, by name, from the weights of the engine of a slot.

        Raises:
            Diverged: the weights are not finite, in training or in the published precision.
        """
        ...

    def read(self, contents: Mapping[str, Tensor], layouts: Mapping[str, Layout]) -> Weights:
        """Read a model's files, as uint8 bytes by name, for a resident model.

        Raises:
            BaseError: a file is not safetensors, or does not fit the resident model.
        """
        ...

    def num_trained(self, base: Base, recipe: Recipe) -> int:
        """Count the trained parameters, from configurations and headers only."""
        ...

    def num_frozen(self, base: Base, recipe: Recipe) -> int:
        """Number of parameters that a step computes with and does not train."""
        ...

    def published_bytes(self, base: Base, recipe: Recipe) -> int:
        """Return the size of a model's files."""
        ...

    def about(self, files: Mapping[str, bytes]) -> dict[str, str]:
        """Return what a model's record stores about the files of `publish`."""
        ...


def method_of(settings: MethodSettings) -> Method:
    """Return the method of a recipe's `method`."""
    return import_module(f"dbray.method.{settings.kind}").METHOD
