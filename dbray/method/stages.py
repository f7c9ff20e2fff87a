"""The files of a model of several stages, and how they are read into the resident weights.

Those of the second stage of a cascade have a prefix; in memory, both stages are one model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from dbray.bases import Backbone
from dbray.bases.resident import STAGE_PREFIX, Layout, OfStage, Weights
from dbray.errors import BaseError
from dbray.method.methods import method_of
from dbray.method.with_tokens import Together
from dbray.spec.recipe import Recipe
from dbray.spec.super_resolution import SuperResolution

T = TypeVar("T")


class Trained(Protocol):
    """What a record says of how its files were trained."""

    @property
    def recipe(self) -> Recipe:
        """That of the first stage."""
        ...

    @property
    def super_resolution(self) -> SuperResolution | None:
        """The second stage, if there is one."""
        ...


def read(model: Trained, contents: Mapping[str, Tensor], layouts: Mapping[str, Layout]) -> Weights:
    """Read the files of all stages of a model, as `Method.read` does those of one.

    Raises:
        BaseError: as there.
    """
    stage = model.super_resolution
    own = method_of(model.recipe.method).read(of_first(contents), of_first(layouts))
    if stage is None or not (files := of_second(contents)):
        return own
    second = method_of(stage.recipe.method).read(files, of_second(layouts))
    return Together((own, OfStage(second)))


def of_first(named: Mapping[str, T]) -> dict[str, T]:
    """Return what belongs to the first stage, by its name."""
    return {name: one for name, one in named.items() if not name.startswith(STAGE_PREFIX)}


def of_second(named: Mapping[str, T]) -> dict[str, T]:
    """Return what belongs to the second stage, by its name without the prefix."""
    return {name.removeprefix(STAGE_PREFIX): one for name, one in named.items()
            if name.startswith(STAGE_PREFIX)}  # fmt: skip


def as_second(named: Mapping[str, T]) -> dict[str, T]:
    """Return the files of the second stage under the names that they are published with."""
    return {f"{STAGE_PREFIX}{name}": one for name, one in named.items()}


def put(backbone: Backbone, model: Trained, files: Mapping[str, Path]) -> None:
    """Load a model's files into the resident weights of a backbone.

    Raises:
        BaseError: as in `read`, or a file cannot be read. The backbone is unchanged then.
    """
    contents = {}
    for name, file in files.items():
        try:
            contents[name] = torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)
        except (OSError, ValueError) as exc:
            raise BaseError(f"{file} cannot be read: {exc}") from exc
    backbone.resident.put(read(model, contents, backbone.resident.layouts))
