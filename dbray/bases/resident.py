"""The resident weights of a backbone: the one door by which they are replaced and put back.

Owns one pristine copy of the base's weights, taken when a part is first replaced: training never
needs it, and everything else goes back to it, bit for bit. The tensors of a part are brought
together in one buffer, one after the other, sorted by name, as in a safetensors file: so a swap is
one copy.
What is put in is a method's: see `Weights`.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor, nn

Layout = Mapping[str, torch.Size]
"""Names and shapes of a part's tensors, sorted by name."""


class Weights(Protocol):
    """A published model in memory, as its method reads it."""

    @property
    def size_bytes(self) -> int:
        """Memory that it holds."""
        ...

    @property
    def prepared_bytes(self) -> int:
        """Memory that it would hold on the device."""
        ...

    @property
    def parts(self) -> frozenset[str]:
        """Names of the parts that it changes."""
        ...

    def prepare(self, device: torch.device) -> Weights:
        """Copy to the device, in the type of the resident modules."""
        ...

    def write(self, resident: Resident) -> None:
        """Change the parts that it names, which may hold anything before."""
        ...


class Resident:
    """The weights of some models, replaced in place."""

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        self._models = models
        self._live: dict[str, Tensor] = {}
        self._pristine: dict[str, Tensor] = {}
        self._changed: frozenset[str] = frozenset()
        self._helper: ThreadPoolExecutor | None = None
        self.layouts: dict[str, Layout] = {
            part: {name: tensor.shape for name, tensor in _tensors(model).items()}
            for part, model in models.items()
        }

    def put(self, weights: Weights | None) -> None:
        """Put weights in; parts that they do not change, or all for None, get the base's back."""
        parts = weights.parts if weights else frozenset()
        for part in parts:
            self._take(part)
        # Only now is anything overwritten.
        before, self._changed = self._changed, self._changed | parts
        for part in before - parts:
            self.overwrite(part, self._pristine[part])
        if weights:
            weights.write(self)
        self._changed = parts

    @property
    def changed(self) -> frozenset[str]:
        """Names of the parts that are not the base's now."""
        return self._changed

    def pristine(self, part: str) -> Tensor:
        """The base's weights of a part that is being replaced, flat, on the CPU."""
        return self._pristine[part]

    @torch.no_grad()
    def overwrite(self, part: str, source: Tensor) -> None:
        """Replace a part by flat weights in the order of its layout."""
        # One half here and one beside: a single core cannot use all of the memory's speed.
        target = self._live[part]
        half = len(target) // 2
        self._helper = self._helper or ThreadPoolExecutor(1, "copier")
        beside = self._helper.submit(_copy, target[half:], source[half:])
        try:
            _copy(target[:half], source[:half])
        finally:
            beside.result()

    @torch.no_grad()
    def _take(self, part: str) -> None:
        """Bring a part's tensors into one buffer, and keep its base weights."""
        if part in self._live:
            return
        tensors = _tensors(self._models[part])
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors.values()])
        pieces = flat.split([tensor.numel() for tensor in tensors.values()])
        for tensor, piece in zip(tensors.values(), pieces, strict=True):
            tensor.data = piece.view(tensor.shape)
        self._live[part], self._pristine[part] = flat, flat.to("cpu", copy=True)


@torch.no_grad()
def _copy(target: Tensor, source: Tensor) -> None:
    target.copy_(source)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module's state dict themselves, sorted by name."""
    owners = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    return {name: owners[name] for name in sorted(module.state_dict())}
