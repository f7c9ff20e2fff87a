"""LoRA: low-rank factors for the weights of some layers; everything else stays frozen.

Only the factors are published, in one file `lora.safetensors` with the keys of PEFT and diffusers
(`unet.<path>.lora_A.weight`, ...), and PEFT's configuration in its metadata. In a resident model
they are merged into the base's pristine weights, so that a forward pass costs the same.

Source: Hu et al. 2021 (arXiv 2106.09685); DoRA: Liu et al. 2024 (arXiv 2402.09353).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from dbray.bases import Backbone, Base
from dbray.bases.resident import Changes, Layout, Target, changes_of
from dbray.errors import BaseError, Diverged, RegistryError
from dbray.method.adapter import Adapter, inject
from dbray.method.factors import (
    Factors,
    canonical,
    collect,
    from_published,
    metadata_of,
    to_published,
)
from dbray.method.low_rank import LowRank
from dbray.method.with_tokens import WithTokens, trained_parts
from dbray.spec.methods import Lora as LoraSettings
from dbray.spec.methods import Pivotal
from dbray.spec.recipe import Recipe
from dbray.training.losses import generator_of

FILE = "lora.safetensors"
PIVOTAL_RATE = 0.03
"""Of the embeddings, if the recipe does not set it."""


class Lora(WithTokens):
    """See the module, and `dbray.method.methods.Method`."""

    def token_rate(self, recipe: Recipe) -> float | None:
        """The recipe's rate; the pivotal kind always has one."""
        always = PIVOTAL_RATE if isinstance(recipe.method, Pivotal) else None
        return recipe.identifier_rate or always

    def prepare(
        self, backbone: Backbone, network: nn.Module, recipe: Recipe, num_slots: int
    ) -> None:
        """Slots in each targeted layer.

        The initial factors depend on the recipe's seed, and are the same for all subjects.
        """
        settings, base = _settings(recipe), backbone.base
        alpha = settings.alpha or settings.rank
        form = LowRank(settings.rank, alpha, num_slots, settings.dora)
        adapters = {}
        for part in trained_parts(base, recipe):
            targets, expected = _targets(base, part, settings)
            adapters[part] = inject(backbone.models[part], targets, form, expected)
            for slot in range(num_slots):
                adapters[part].reset(slot, generator_of(recipe.seed, "lora", part))
        network.__dict__["adapters"] = adapters

    def assign(self, network: nn.Module, rows_B: Tensor | None) -> None:
        """See Method."""
        super().assign(network, rows_B)
        for adapter in network.__dict__["adapters"].values():
            adapter.assign(rows_B)

    def publish_own(
        self, network: nn.Module, weights: Mapping[str, Tensor], recipe: Recipe
    ) -> dict[str, bytes]:
        """One file with the factors of all parts, in the recipe's publish_precision."""
        settings = _settings(recipe)
        dtype = torch.float16 if recipe.publish_precision == "fp16" else torch.float32
        adapters: dict[str, Adapter] = network.__dict__["adapters"]
        state = {}
        for part, adapter in adapters.items():
            own = {name.removeprefix(f"{part}."): value for name, value in weights.items()}
            for key, value in adapter.state(0, own).items():
                state[f"{part}.{key}"] = value.to(dtype)
        if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
            raise Diverged("the factors are not finite; lower learning_rate, or use precision and "
                           "publish_precision fp32")  # fmt: skip
        return {FILE: save(*to_published(collect(state, settings.alpha or settings.rank)))}

    def read_own(self, contents: Mapping[str, Tensor], layouts: Mapping[str, Layout]) -> Merged:
        """The factors of each layer, checked against its shape."""
        if set(contents) != {FILE}:
            raise BaseError(f"a LoRA is one file {FILE}, not {', '.join(sorted(contents))}")
        adapter = _parse(contents[FILE].numpy().tobytes())
        owners = {
            canonical(f"{part}.{name.removesuffix('.weight')}"): (part, name)
            for part, layout in layouts.items()
            for name in layout
            if name.endswith(".weight")
        }
        found = {}
        for layer, factors in adapter.items():
            part, name = owners.get(layer, ("", ""))
            if not part:
                raise BaseError(f"{FILE}: the base has no layer {layer}")
            _check_fit(layer, factors, layouts[part][name])
            found[part, name] = factors
        return Merged(found)

    def num_own(self, base: Base, recipe: Recipe) -> int:
        """Both factors of every targeted layer, and DoRA's magnitudes."""
        settings, total = _settings(recipe), 0
        for part in trained_parts(base, recipe):
            targets, _ = _targets(base, part, settings)
            for name, shape in base.layout.shapes(part).items():
                if len(shape) > 1 and _is_target(name.removesuffix(".weight"), targets):
                    outputs, inputs = shape[0], math.prod(shape[1:])
                    total += settings.rank * (inputs + outputs) + (outputs if settings.dora else 0)
        return total


METHOD = Lora()


@dataclass(frozen=True)
class Merged:
    """A model's factors in memory, by part and name of the weight that they are merged into."""

    layers: Mapping[tuple[str, str], Factors]

    @property
    def size_bytes(self) -> int:
        """See Weights."""
        return sum(tensor.nbytes for tensor in self._tensors())

    @property
    def prepared_bytes(self) -> int:
        """See Weights."""
        return sum(tensor.numel() * 4 for tensor in self._tensors())

    @property
    def changes(self) -> Changes:
        """The weights of the layers that have factors."""
        return changes_of(self.layers)

    def prepare(self, device: torch.device) -> Merged:
        """Copy to the device, as float32."""
        return Merged({layer: _to(factors, device) for layer, factors in self.layers.items()})

    @torch.no_grad()
    def write(self, resident: Target) -> None:
        """Merge into the base's pristine weights."""
        for (part, name), factors in self.layers.items():
            live, base = resident.tensor(part, name)
            moved = _to(factors, live.device)
            pristine = base.to(live.device, torch.float32).flatten(1)
            scaled = moved.up.flatten(1) * (moved.alpha / moved.rank)
            adapted = torch.addmm(pristine, scaled, moved.down.flatten(1))
            if moved.magnitude is not None:
                adapted *= (moved.magnitude / adapted.norm(dim=1)).unsqueeze(1)
            live.copy_(adapted.view_as(live))

    def _tensors(self) -> Iterator[Tensor]:
        for factors in self.layers.values():
            yield from (factors.down, factors.up)
            if factors.magnitude is not None:
                yield factors.magnitude


def read_file(file: Path) -> dict[str, Factors]:
    """Read the factors of each layer from a published file. Raises BaseError."""
    return _parse(file.read_bytes())


def _parse(data: bytes) -> dict[str, Factors]:
    try:
        return from_published(load(data), metadata_of(data))
    except (SafetensorError, RegistryError, ValueError, KeyError, TypeError) as exc:
        raise BaseError(f"{FILE} cannot be read: {exc!r}") from exc


def _to(factors: Factors, device: torch.device) -> Factors:
    magnitude = factors.magnitude
    return Factors(
        factors.down.to(device, torch.float32),
        factors.up.to(device, torch.float32),
        factors.alpha,
        None if magnitude is None else magnitude.to(device, torch.float32),
    )


def _settings(recipe: Recipe) -> LoraSettings:
    assert isinstance(recipe.method, LoraSettings)
    return recipe.method


def _targets(base: Base, part: str, settings: LoraSettings) -> tuple[tuple[str, ...], int | None]:
    """Return the path endings of a part's targeted layers, and how many the family expects."""
    family = base.family
    if part != family.denoiser:
        return family.text_targets, None
    groups = settings.targets or family.default_targets
    ends = tuple(end for group in groups for end in family.targets.get(group, (group,)))
    config = base.layout.config(part)
    counts = [family.num_targets(config, group) for group in groups]
    known = [count for count in counts if count is not None]
    return ends, sum(known) if len(known) == len(counts) else None


def _is_target(path: str, targets: Iterable[str]) -> bool:
    return any(path == target or path.endswith(f".{target}") for target in targets)


def _check_fit(layer: str, factors: Factors, shape: torch.Size) -> None:
    """Raise BaseError if a layer's factors do not fit its weight."""
    down, up = factors.down, factors.up
    fits = down.ndim > 1 and up.ndim > 1 and down.shape[0] == up.shape[1]
    if not fits or down.shape[1:] != shape[1:] or up.shape[0] != shape[0]:
        raise BaseError(f"{FILE}: the factors of {layer} do not fit the base")
