"""An adapter: the layers with slots in one module, and operations on a slot.

Owns which layers are replaced, how a slot is reset, loaded, saved and merged, and its keys and
shapes, which are PEFT's. Does not know families of models, files or optimisers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dbray.errors import TrainError
from dbray.method.low_rank import LowRank, LowRankConv2d, LowRankLinear, Routing, SlotLayer


class Adapter:
    """The layers with slots of one module, by their paths in it."""

    def __init__(self, layers: Mapping[str, SlotLayer], form: LowRank, routing: Routing) -> None:
        self.layers, self.form = dict(layers), form
        self._routing = routing
        self._pristine: dict[str, Tensor] = {}
        self._merged: int | None = None

    @property
    def merged(self) -> int | None:
        """The slot that is merged into the resident weights, if any."""
        return self._merged

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the factors of all slots: the parameters of an optimiser."""
        for layer in self.layers.values():
            yield from (layer.down, layer.up)
            if layer.magnitude is not None:
                yield layer.magnitude

    def assign(self, rows_B: Tensor | None) -> None:
        """Set the slot of each row of the next batches.

        None gives each slot an equal, contiguous share of the rows, in slot order: the fastest
        way, used in training. A tensor of slot numbers allows any mixture of rows.
        """
        self._routing.rows_B = rows_B

    @contextmanager
    def base_only(self) -> Iterator[None]:
        """Compute without slots: the untouched base, unless a slot is merged."""
        was_active, self._routing.is_active = self._routing.is_active, False
        try:
            yield
        finally:
            self._routing.is_active = was_active

    def reset(self, slot: int, generator: torch.Generator) -> None:
        """Initialise a slot: `down` uniform from the generator, `up` zero (PEFT's default).

        The content depends only on the generator, the rank and the targets, never on other slots.
        """
        self.unmerge()  # DoRA's magnitudes start as the norms of the base weights
        for layer in self.layers.values():
            layer.reset(slot, generator)
            layer.scale[slot] = self.form.alpha / self.form.rank

    def state(self, slot: int, tensors: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Copy a slot's factors to the CPU, under PEFT's keys and in PEFT's shapes.

        `tensors` are stacked factors by parameter name ('<path>.down', ...) that replace the
        layers' own: a moving average, or factors gathered from the ranks of ZeRO.
        """
        state: dict[str, Tensor] = {}
        for path, layer in self.layers.items():
            for name, (key, shape) in _peft_shapes(path, layer, self.form.rank).items():
                stacked = getattr(layer, name) if tensors is None else tensors[f"{path}.{name}"]
                factor = stacked[slot].detach()
                factor = factor if name == "magnitude" else factor.T
                copied = factor.to("cpu", torch.float32, copy=True)
                state[key] = copied.reshape(shape).contiguous()
        return state

    @torch.no_grad()
    def load(
        self, slot: int, tensors: Mapping[str, Tensor], scales: Mapping[str, float] | None = None
    ) -> None:
        """Load a state into a slot. A rank below the adapter's is padded with zeros.

        `scales` are the alpha / rank of each layer of the tensors, by path; None means the
        adapter's own.

        Raises:
            TrainError: a key or shape does not fit this adapter; the slot is unchanged then.
        """
        factors = {path: _factors(path, layer, tensors) for path, layer in self.layers.items()}
        if unknown := set(tensors) - {
            key for found in factors.values() for key, _ in found.values()
        }:
            raise TrainError(f"the adapter's module has no layer for the key {min(unknown)!r}")
        if self._merged == slot:
            self.unmerge()
        for path, layer in self.layers.items():
            for name, (_, factor) in factors[path].items():
                target = getattr(layer, name)[slot].zero_()
                target[tuple(slice(size) for size in factor.shape)] = factor.to(target.device)
            layer.scale[slot] = self.form.alpha / self.form.rank if scales is None else scales[path]

    def merge(self, slot: int) -> None:
        """Merge a slot into the resident weights: a forward pass then costs the same as the base's.

        The merged weights are computed from a copy of the base weights, taken by the first merge.
        """
        if not self._pristine:
            weights = {path: layer.weight.detach() for path, layer in self.layers.items()}
            self._pristine = {path: weight.clone() for path, weight in weights.items()}
        for path, layer in self.layers.items():
            layer.merge(slot, self._pristine[path])
        self._merged, self._routing.is_active = slot, False

    @torch.no_grad()
    def unmerge(self) -> None:
        """Copy the base weights back, bit for bit; rows use their slots again."""
        if self._merged is None:
            return
        for path, layer in self.layers.items():
            layer.weight.copy_(self._pristine[path])
        self._merged, self._routing.is_active = None, True


def inject(
    module: nn.Module, targets: Iterable[str], form: LowRank, expected: int | None = None
) -> Adapter:
    """Replace the targeted layers of a module by layers with slots, and freeze everything else.

    A target is a path in the module, or the end of one after a dot: 'to_q', 'ff.net.0.proj'.
    Replaced layers keep their weights under the same names. Slots have no effect until they are
    reset or loaded.

    Raises:
        TrainError: a target matches no linear layer or convolution, or one that cannot have slots,
            or the number of layers is not `expected`.
    """
    paths = _matching(module, tuple(targets))
    if expected is not None and len(paths) != expected:
        raise TrainError(f"the targets match {len(paths)} layers; expected are {expected}")
    routing = Routing()
    layers = {path: _replacement(module, path, form, routing) for path in paths}
    module.requires_grad_(False)
    for path, layer in layers.items():
        layer.train(module.get_submodule(path).training)
        module.set_submodule(path, layer)
    return Adapter(layers, form, routing)


def _matching(module: nn.Module, targets: tuple[str, ...]) -> list[str]:
    """Find the paths that match targets, in the module's order. Raises TrainError."""
    unmatched, paths = set(targets), []
    for path, layer in module.named_modules():
        named = {t for t in targets if path == t or path.endswith(f".{t}")}
        if named and isinstance(layer, nn.Linear | nn.Conv2d):
            paths.append(path)
            unmatched -= named
    if unmatched or not paths:
        name = repr(min(unmatched)) if unmatched else "an empty list"
        raise TrainError(f"the target {name} matches no linear layer and no convolution")
    return paths


def _replacement(module: nn.Module, path: str, form: LowRank, routing: Routing) -> SlotLayer:
    layer = module.get_submodule(path)
    if not takes_slots(layer):
        raise TrainError(f"{path} cannot be trained by low-rank factors: {layer}")
    return slot_layer(layer, form, routing)


def takes_slots(layer: nn.Module) -> bool:
    """Return whether a layer can be replaced by one with slots."""
    # A subclass may compute something else, or be bypassed: attention reads `out_proj.weight`.
    if type(layer) is nn.Conv2d:
        return layer.groups == 1 and layer.padding_mode == "zeros"
    return type(layer) is nn.Linear


def slot_layer(layer: nn.Module, form: LowRank, routing: Routing) -> SlotLayer:
    """Make the layer with slots that replaces one that takes them."""
    if isinstance(layer, nn.Conv2d):
        return LowRankConv2d(layer, form, routing)
    assert isinstance(layer, nn.Linear)
    return LowRankLinear(layer, form, routing)


def _peft_shapes(path: str, layer: SlotLayer, rank: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return PEFT's key and shape of each of a layer's factors, by the factor's name."""
    outputs, *inputs = layer.shape
    pointwise = (1,) * (len(inputs) - 1)
    shapes = {
        "down": (f"{path}.lora_A.weight", (rank, *inputs)),
        "up": (f"{path}.lora_B.weight", (outputs, rank, *pointwise)),
    }
    if layer.magnitude is not None:
        shape = (1, outputs, 1, 1) if pointwise else (outputs,)
        shapes["magnitude"] = (f"{path}.lora_magnitude_vector", shape)
    return shapes


def _factors(
    path: str, layer: SlotLayer, tensors: Mapping[str, Tensor]
) -> dict[str, tuple[str, Tensor]]:
    """Return PEFT's key and a slot's tensor of each of a layer's factors. Raises TrainError."""
    down = tensors.get(f"{path}.lora_A.weight")
    rank = layer.down.shape[2] if down is None else len(down)
    if rank > layer.down.shape[2]:
        raise TrainError(f"{path}: rank {rank} does not fit slots of rank {layer.down.shape[2]}")
    factors = {}
    for name, (key, shape) in _peft_shapes(path, layer, rank).items():
        if key not in tensors:
            raise TrainError(f"the adapter's tensors lack {key!r}")
        if tensors[key].shape != shape:
            raise TrainError(f"{key} has the shape {tuple(tensors[key].shape)}, not {shape}")
        flat = tensors[key].flatten() if name == "magnitude" else tensors[key].flatten(1).T
        factors[name] = (key, flat)
    return factors
