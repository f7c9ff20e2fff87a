"""The change of full fine-tuning as low-rank factors: a fraction of the bytes of whole parts.

The change of each linear layer and convolution is reduced to a rank, by a decomposition with fixed
random numbers, so that equal weights give equal files; the factors are published like a LoRA's. All
other tensors (biases, norms, layers too small for factors) are published as full differences to the
base in float32, in `rest.safetensors`. The error of the reduction is measured on published files.

Source: Halko, Martinsson and Tropp 2011 (arXiv 0909.4061), in torch.svd_lowrank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from dbray.bases import Base
from dbray.bases.resident import Changes, Layout, Target, Weights, changes_of
from dbray.errors import BaseError, Diverged
from dbray.method import lora
from dbray.method.factors import Factors, canonical, metadata_of, to_published

FILE = "rest.safetensors"
ERROR = "relative_error"
"""Name of the measured error in a record: norm of the missing change over norm of the change."""

_BEYOND_RANK, _ITERATIONS = 8, 4
"""With these, the error of the decomposition is close to that of an exact one."""


def publish(
    network: nn.Module, base: Mapping[str, Tensor], weights: Mapping[str, Tensor],
    rank: int, dtype: torch.dtype,
) -> dict[str, bytes]:  # fmt: skip
    """Make the files of trained weights from them and the base's, by their names in the network.

    Raises:
        Diverged: the weights are not finite, or not finite in this type.
    """
    factors: dict[str, Factors] = {}
    rest: dict[str, Tensor] = {}
    left_out = changed = 0.0
    for name, weight in weights.items():
        change = weight.float() - base[name].float()
        changed += float(change.double().square().sum())
        if not math.isfinite(changed):
            break  # reported below; the decomposition would raise an error of its own
        if not _takes_factors(network, name, change, rank):
            rest[name] = change.contiguous()
            continue
        found = _cut(change, rank, dtype)
        factors[canonical(name.removesuffix(".weight"))] = found
        kept = found.up.double().flatten(1) @ found.down.double().flatten(1)
        left_out += float((change.flatten(1) - kept).square().sum())
    if not math.isfinite(left_out + changed):
        raise Diverged("the change of the weights is not finite; lower learning_rate, or use "
                       "precision and publish_precision fp32")  # fmt: skip
    error = math.sqrt(left_out / changed) if changed else 0.0
    files = {FILE: save(rest, {ERROR: f"{error:.4g}"})}
    return files | ({lora.FILE: save(*to_published(factors))} if factors else {})


def _takes_factors(network: nn.Module, name: str, change: Tensor, rank: int) -> bool:
    """Return whether factors of a tensor's change are smaller, and readable by other programs."""
    if not name.endswith(".weight") or change.ndim < 2:
        return False
    layer = network.get_submodule(name.removesuffix(".weight"))
    is_plain = type(layer) is nn.Linear or (type(layer) is nn.Conv2d and layer.groups == 1)
    return is_plain and rank * (len(change) + change[0].numel()) < change.numel()


def _cut(change: Tensor, rank: int, dtype: torch.dtype) -> Factors:
    """Return the factors of a change, each with half of its scale, so that both fit 16 bits."""
    flat = change.flatten(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        left, scale, right = torch.svd_lowrank(flat, min(rank + _BEYOND_RANK, *flat.shape),
                                               _ITERATIONS)  # fmt: skip
    root = scale[:rank].sqrt()
    up = (left[:, :rank] * root).reshape(-1, rank, *(1,) * (change.ndim - 2))
    down = (right[:, :rank] * root).T.reshape(rank, *change.shape[1:])
    return Factors(down.to(dtype).contiguous(), up.to(dtype).contiguous(), float(rank))


def about(files: Mapping[str, bytes]) -> dict[str, str]:
    """Return what the record stores about these files."""
    return {ERROR: metadata_of(files[FILE])[ERROR]}


def read(contents: Mapping[str, Tensor], layouts: Mapping[str, Layout]) -> list[Weights]:
    """Read the files. Raises BaseError if they do not fit the base."""
    try:
        tensors = load(contents[FILE].numpy().tobytes())
    except (SafetensorError, ValueError, KeyError) as exc:
        raise BaseError(f"{FILE} cannot be read: {exc}") from exc
    found = {}
    for full_name, tensor in tensors.items():
        part, _, name = full_name.partition(".")
        if layouts.get(part, {}).get(name) != tensor.shape:
            raise BaseError(f"{FILE}: {full_name} does not fit the base")
        found[part, name] = tensor
    factors = {name: content for name, content in contents.items() if name != FILE}
    read_factors = [lora.METHOD.read_own(factors, layouts)] if factors else []
    return [*read_factors, Differences(found)]


@dataclass(frozen=True)
class Differences:
    """Differences to the base's tensors, in memory, by part and name."""

    tensors: Mapping[tuple[str, str], Tensor]

    @property
    def size_bytes(self) -> int:
        """See Weights."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def prepared_bytes(self) -> int:
        """See Weights."""
        return sum(tensor.numel() * 4 for tensor in self.tensors.values())

    @property
    def changes(self) -> Changes:
        """The tensors that it has differences for."""
        return changes_of(self.tensors)

    def prepare(self, device: torch.device) -> Differences:
        """Copy to the device, as float32."""
        return Differences({key: t.to(device, torch.float32) for key, t in self.tensors.items()})

    @torch.no_grad()
    def write(self, resident: Target) -> None:
        """Add to the base's pristine tensors."""
        for (part, name), difference in self.tensors.items():
            live, base = resident.tensor(part, name)
            live.copy_(base.to(live.device, torch.float32) + difference.to(live.device))


def size_bytes(base: Base, parts: tuple[str, ...], rank: int, width: int) -> int:
    """Return the size of the files, from the base's headers; a factor's value has `width` bytes."""
    shapes = [one for part in parts for one in base.layout.shapes(part).items()]
    return sum(_size_bytes(name, shape, rank, width) for name, shape in shapes)


def _size_bytes(name: str, shape: tuple[int, ...], rank: int, width: int) -> int:
    whole = math.prod(shape)
    if len(shape) < 2 or not name.endswith(".weight") or name.endswith("embedding.weight"):
        return 4 * whole
    num_factors = rank * (shape[0] + math.prod(shape[1:]))
    return width * num_factors if num_factors < whole else 4 * whole
