"""The layout of a base on disk: what a diffusers folder must contain to be loaded.

Owns the names of its files and the checks common to all families, so that `dbray validate` finds in
seconds what would otherwise fail on a cluster. Reads configurations and the headers of weights,
never tensors. Each family checks what is special to it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open

from dbray.bases.families import family_of
from dbray.bases.families.family import Family
from dbray.errors import BaseError, SpecError
from dbray.spec.base import Spec
from dbray.spec.methods import Kind
from dbray.spec.problems import problems_of
from dbray.spec.recipe import Recipe
from dbray.spec.sections import Previews, Prior, Scoring
from dbray.spec.super_resolution import SuperResolution
from dbray.spec.text_files import parse_yaml, read_text

INDEX_FILE = "model_index.json"
DEFAULTS_FILE = "dbray.yaml"
SUFFIXES = (".json", ".safetensors", ".txt", ".model", ".jinja")
"""Suffixes of the files that are read."""

_WEIGHTS = {
    "diffusers": "diffusion_pytorch_model.safetensors",
    "transformers": "model.safetensors",
}
_VOCABULARIES = ({"tokenizer.json"}, {"vocab.json", "merges.txt"}, {"spiece.model"})
_HUB = "models--"
_SAVE_AGAIN = "write the folder again with save_pretrained, without a variant"


class Defaults(Spec):
    """Recommendations of a base's makers: the file `dbray.yaml` in its folder."""

    recipe: Recipe = Recipe()
    methods: dict[Kind, Recipe] = Field(default_factory=dict)
    """Recipes for one method each, which come before `recipe`."""
    prior: Prior = Prior()
    previews: Previews = Previews()
    scoring: Scoring = Scoring()
    super_resolution: SuperResolution | None = None
    """Of a cascade: how its second stage is fine-tuned and sampled."""
    class_nouns: tuple[str, ...] = ()
    """All that the base knows, where it knows only these; `class_noun: auto` is one of them."""

    @model_validator(mode="after")
    def _names_no_preset(self) -> Self:
        if any(recipe.preset for recipe in (self.recipe, *self.methods.values())):
            raise ValueError("presets are for jobs; write the values instead")
        return self


@dataclass(frozen=True)
class Layout:
    """A folder in the diffusers layout."""

    folder: Path
    has_weights: bool = True
    """Whether shapes are read from weights, which must be there; else from configurations."""

    @cached_property
    def index(self) -> dict[str, Any]:
        """The content of `model_index.json`. Raises BaseError."""
        if not (self.folder / INDEX_FILE).is_file():
            raise BaseError(f"{self.folder} has no {INDEX_FILE}, so it is not a diffusers folder; "
                            "give the folder that save_pretrained wrote")  # fmt: skip
        return read_object(self.folder / INDEX_FILE)

    @cached_property
    def family(self) -> Family:
        """The family of the pipeline. Raises BaseError."""
        return family_of(self.index.get("_class_name"))

    @property
    def names(self) -> list[str]:
        """Names of the base in paths: its folder's own, and that of the hub's cache."""
        cached = [one.name for one in self.folder.parents if one.name.startswith(_HUB)]
        return [self.folder.name, *(name.removeprefix(_HUB) for name in cached)]

    def check(self) -> None:
        """Raise BaseError if the folder is not a complete base of a supported family."""
        for part in self.family.folders:
            self.config(part)
        self.family.check(self)
        self.family.resolution(self)
        for tokenizer in self.family.tokenizers:
            self._check_vocabulary(tokenizer)
        for part in self.family.models:
            self.num_parameters(part)

    @property
    def is_empty(self) -> bool:
        """Whether there is no weight file at all. Raises BaseError."""
        return not any(file.is_file() for part in self.family.models
                       for file in self.weight_files(part))  # fmt: skip

    def config(self, part: str) -> dict[str, Any]:
        """Read the configuration of a part. Raises BaseError."""
        name = "scheduler_config.json" if part in self.family.schedulers else "config.json"
        if part in self.family.tokenizers:
            name = "tokenizer_config.json"
        return read_object(self.folder / part / name)

    @property
    def autoencoder(self) -> dict[str, Any]:
        """The autoencoder's configuration; empty without one. Raises BaseError."""
        part = self.family.autoencoder
        return {} if part is None else self.config(part)

    def num_parameters(self, part: str) -> int:
        """Count a part's parameters. Raises BaseError."""
        return sum(math.prod(shape) for shape in self.shapes(part).values())

    def shapes(self, part: str) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of a part's tensors. Raises BaseError."""
        if not self.has_weights:
            from dbray.bases.empty import shapes

            return shapes(self, part)
        return {name: shape for name, (shape, _) in self._headers(part).items()}

    def type(self, part: str) -> str:
        """Return the type of most of a part's tensors: F32, F16, BF16. Raises BaseError."""
        types = [kind for _, kind in self._headers(part).values()]
        return max(set(types), key=types.count, default="F32")

    def _headers(self, part: str) -> dict[str, tuple[tuple[int, ...], str]]:
        files = self.weight_files(part)
        return {name: entry for file in files for name, entry in _header(file).items()}

    def files(self) -> list[Path]:
        """Return every file that affects the base's images, by part and name."""
        return [
            file
            for part in self.family.folders
            for file in sorted((self.folder / part).glob("*"))
            if file.suffix in SUFFIXES
        ]

    def _check_vocabulary(self, tokenizer: str) -> None:
        folder = self.folder / tokenizer
        if not any(all((folder / name).is_file() for name in names) for names in _VOCABULARIES):
            raise BaseError(f"{folder} has neither tokenizer.json nor spiece.model nor vocab.json "
                            "and merges.txt; copy or download the base again")  # fmt: skip

    def weight_files(self, part: str) -> list[Path]:
        """Return the files with a part's weights: one, or the shards in an index."""
        library = self.family.models[part].partition(".")[0]
        whole = self.folder / part / _WEIGHTS[library]
        index = whole.with_name(f"{whole.name}.index.json")
        if whole.is_file() or not index.is_file():
            return [whole]
        shards = read_object(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise BaseError(f"{index} lists no files; {_SAVE_AGAIN}")
        return [whole.with_name(name) for name in sorted({str(name) for name in shards.values()})]


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON file that contains an object. Raises BaseError."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise BaseError(f"{file.parent.name} has no readable {file.name}: {exc}; "
                        "copy or download the base again") from exc  # fmt: skip
    if not isinstance(value, dict):
        raise BaseError(f"{file} is not a JSON object; copy or download the base again")
    return value


def read_defaults(folder: Path) -> dict[str, Any]:
    """Read the makers' recommendations: only the fields in the file, {} without a file.

    Raises:
        BaseError: with every mistake in the file.
    """
    file = folder / DEFAULTS_FILE
    if not file.is_file():
        return {}
    lines = None
    try:
        data, lines = parse_yaml(read_text(file), file)
        return Defaults.model_validate({} if data is None else data).model_dump(exclude_unset=True)
    except SpecError as exc:
        problems = exc.problems
    except ValidationError as exc:
        problems = problems_of(exc, str(file), lines)
    raise BaseError("; ".join(f"{one.where}: {one.what}: {one.fix}" for one in problems))


def _header(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Read shapes and types from the header of a safetensors file. Raises BaseError."""
    if not file.is_file():
        others = sorted(one.name for one in file.parent.glob("*") if one.suffix != ".json")
        raise BaseError(
            f"no {file.name} in {file.parent}, only {', '.join(others[:3]) or 'nothing'}: "
            f"dbray reads neither pickles nor variants such as fp16; {_SAVE_AGAIN}"
        )
    try:
        # Opening the file compares its size with its header.
        with safe_open(file, framework="numpy") as opened:
            slices = {name: opened.get_slice(name) for name in list(opened.keys())}
            return {name: (tuple(one.get_shape()), one.get_dtype()) for name, one in slices.items()}
    except (OSError, SafetensorError) as exc:
        raise BaseError(f"{file} is not a whole safetensors file ({file.stat().st_size} bytes: "
                        f"{exc}); copy or download it again") from exc  # fmt: skip
