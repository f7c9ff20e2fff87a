"""The methods of fine-tuning: what each trains, publishes, and puts back into a resident model.

A method is one file beside this one, named as its `kind`, which holds its METHOD. Its settings are
in `dbray.spec.methods`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from dbray.bases import Backbone, Base
from dbray.bases.condition import Condition
from dbray.bases.resident import Layout, Weights
from dbray.spec.methods import MethodSettings
from dbray.spec.sections import Recipe
from dbray.training.engine import Engine
from dbray.training.plain import Rate


class Method(Protocol):
    """What dbray asks of a way to fine-tune."""

    def network(self, backbone: Backbone, recipe: Recipe) -> nn.Module:
        """Make the module that an engine trains; what requires gradients in it is trained."""
        ...

    def rates(self, network: nn.Module, recipe: Recipe) -> Mapping[str, Rate]:
        """Return the rates of parameters that do not follow the recipe's learning rate."""
        ...

    def condition(self, backbone: Backbone, recipe: Recipe, prompts: Sequence[str]) -> Condition:
        """Turn N prompts into the N rows that the network takes."""
        ...

    def begin(self, network: nn.Module, base: Base, identifier: str) -> Mapping[str, Tensor]:
        """Prepare the network for a subject; return the parameters that begin otherwise, by name.

        Raises:
            TrainError: the identifier cannot be trained.
        """
        ...

    def after_step(self, engine: Engine) -> None:
        """Change what must be changed in the engine's parameters after every step."""
        ...

    def publish(
        self, network: nn.Module, weights: Mapping[str, Tensor], recipe: Recipe
    ) -> dict[str, bytes]:
        """Make the files of a model, by name, from an engine's weights of the network.

        Raises:
            Diverged: the weights are not finite, or not in the precision of publishing.
        """
        ...

    def read(self, contents: Mapping[str, Tensor], layouts: Mapping[str, Layout]) -> Weights:
        """Read a model's files, each as uint8 bytes by its name, for a resident model.

        Raises:
            BaseError: a file is not safetensors, or does not fit the resident model.
        """
        ...

    def num_trained(self, base: Base, recipe: Recipe) -> int:
        """Number of trained parameters, from configurations and headers alone."""
        ...

    def published_bytes(self, base: Base, recipe: Recipe) -> int:
        """Size of a model's files."""
        ...


def method_of(settings: MethodSettings) -> Method:
    """Return the method of a recipe's `method`."""
    return import_module(f"dbray.method.{settings.kind}").METHOD


def put(backbone: Backbone, settings: MethodSettings, files: Mapping[str, Path]) -> None:
    """Put a model's files into the resident weights of a backbone.

    Raises:
        BaseError: as `Method.read`; or a file cannot be read. The backbone is as it was.
    """
    import torch

    from dbray.errors import BaseError

    contents = {}
    for name, file in files.items():
        try:
            contents[name] = torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)
        except (OSError, ValueError) as exc:
            raise BaseError(f"{file} cannot be read: {exc}") from exc
    backbone.resident.put(method_of(settings).read(contents, backbone.resident.layouts))
