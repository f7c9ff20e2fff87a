"""The resident weights of a backbone: the only object that replaces and restores them.

Owns one pristine copy of the base's weights, taken when a part is first replaced. Training does not
need it; otherwise the base's weights are restored from it, bit for bit. The tensors of a part are
stored in one buffer, sorted by name, as in a safetensors file: so a swap is one copy. A method
defines what is written: see `Weights`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor, nn

Layout = Mapping[str, torch.Size]
"""Names and shapes of a part's tensors, sorted by name."""


Changes = Mapping[str, frozenset[str] | None]
"""Names of the tensors that are written, by part; None: the whole part."""


def changes_of(names: Iterable[tuple[str, str]]) -> Changes:
    """Return the changes of single tensors, given by part and name."""
    found: dict[str, set[str]] = {}
    for part, name in names:
        found.setdefault(part, set()).add(name)
    return {part: frozenset(of_part) for part, of_part in found.items()}


class Target(Protocol):
    """Resident weights of one stage, for `Weights.write`."""

    def tensor(self, part: str, name: str) -> tuple[Tensor, Tensor]:
        """Return a tensor of a part that is being changed, and the base's tensor on the CPU."""
        ...

    def overwrite(self, part: str, source: Tensor) -> None:
        """Replace a part by flat weights in the order of its layout."""


class Weights(Protocol):
    """A published model in memory, in the form of its method."""

    @property
    def size_bytes(self) -> int:
        """Memory in use."""
        ...

    @property
    def prepared_bytes(self) -> int:
        """Memory that it would use on the device."""
        ...

    @property
    def changes(self) -> Changes:
        """The tensors that it writes."""
        ...

    def prepare(self, device: torch.device) -> Weights:
        """Copy to the device, in the type of the resident modules."""
        ...

    def write(self, resident: Target) -> None:
        """Write all tensors of `changes`, whatever their present values are."""
        ...


STAGE_PREFIX = "super_resolution_"
"""What the names of a cascade's second stage begin with: its parts and its files."""


@dataclass(frozen=True)
class OfStage:
    """The weights of a cascade's second stage, as part of a model; implements Weights."""

    own: Weights

    @property
    def size_bytes(self) -> int:
        """See Weights."""
        return self.own.size_bytes

    @property
    def prepared_bytes(self) -> int:
        """See Weights."""
        return self.own.prepared_bytes

    @property
    def changes(self) -> Changes:
        """The tensors that it writes, under the names of the second stage's parts."""
        return {f"{STAGE_PREFIX}{part}": names for part, names in self.own.changes.items()}

    def prepare(self, device: torch.device) -> OfStage:
        """See Weights."""
        return OfStage(self.own.prepare(device))

    def write(self, resident: Target) -> None:
        """See Weights."""
        self.own.write(StageTarget(resident))


@dataclass(frozen=True)
class StageTarget:
    """The resident weights of a cascade's second stage; implements Target."""

    whole: Target

    def tensor(self, part: str, name: str) -> tuple[Tensor, Tensor]:
        """See Target."""
        return self.whole.tensor(f"{STAGE_PREFIX}{part}", name)

    def overwrite(self, part: str, source: Tensor) -> None:
        """See Target."""
        self.whole.overwrite(f"{STAGE_PREFIX}{part}", source)


class Resident:
    """The weights of some models, replaced in place."""

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        self._models = models
        self._live: dict[str, Tensor] = {}
        self._pristine: dict[str, Tensor] = {}
        self._tensors: dict[str, dict[str, Tensor]] = {}
        self._starts: dict[str, dict[str, int]] = {}
        self._changed: dict[str, frozenset[str] | None] = {}
        self._helper: ThreadPoolExecutor | None = None
        self.layouts: dict[str, Layout] = {
            part: {name: tensor.shape for name, tensor in _tensors(model).items()}
            for part, model in models.items()
        }

    def put(self, weights: Weights | None) -> None:
        """Write weights; parts that they do not change (all for None) get the base's again."""
        changes = weights.changes if weights else {}
        for part in changes:
            self._take(part)
        for part, names in self._changed.items():
            self._restore(part, names, changes.get(part, frozenset()))
        # If writing fails, the parts that it may have changed are still known.
        self._changed = dict(changes)
        if weights:
            weights.write(self)

    @property
    def changed(self) -> frozenset[str]:
        """Names of the parts that differ from the base's."""
        return frozenset(self._changed)

    def tensor(self, part: str, name: str) -> tuple[Tensor, Tensor]:
        """Return a tensor of a part that is being changed, and the base's tensor on the CPU."""
        live = self._tensors[part][name]
        start = self._starts[part][name]
        return live, self._pristine[part][start : start + live.numel()].view(live.shape)

    def _restore(
        self, part: str, names: frozenset[str] | None, next_names: frozenset[str] | None
    ) -> None:
        """Restore the base's tensors that were changed and are not written next."""
        if next_names is None:
            return
        if names is None:
            self.overwrite(part, self._pristine[part])
            return
        for name in names - next_names:
            live, base = self.tensor(part, name)
            _copy(live, base)

    @torch.no_grad()
    def overwrite(self, part: str, source: Tensor) -> None:
        """Replace a part by flat weights in the order of its layout."""
        # Two threads copy one half each: a single core cannot use the full memory bandwidth.
        target = self._live[part]
        half = len(target) // 2
        self._helper = self._helper or ThreadPoolExecutor(1, "copier")
        second_half = self._helper.submit(_copy, target[half:], source[half:])
        try:
            _copy(target[:half], source[:half])
        finally:
            second_half.result()

    @torch.no_grad()
    def _take(self, part: str) -> None:
        """Move a part's tensors to one buffer, and copy its base weights."""
        if part in self._live:
            return
        tensors = _tensors(self._models[part])
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors.values()])
        pieces = flat.split([tensor.numel() for tensor in tensors.values()])
        for tensor, piece in zip(tensors.values(), pieces, strict=True):
            tensor.data = piece.view(tensor.shape)
        ends = accumulate(tensor.numel() for tensor in tensors.values())
        self._starts[part] = dict(zip(tensors, (0, *ends), strict=False))
        self._tensors[part] = tensors
        self._live[part], self._pristine[part] = flat, flat.to("cpu", copy=True)


@torch.no_grad()
def _copy(target: Tensor, source: Tensor) -> None:
    target.copy_(source)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters of a module, sorted by name, without buffers such as positions."""
    return dict(sorted(module.named_parameters(remove_duplicate=False)))
