"""Full fine-tuning, the paper's method: all layers of the denoiser and, optionally, text encoders.

Whole parts are published, `unet.safetensors` and so on, each with the names of its state dict. In
memory a part is one flat tensor in the order of its layout, so that writing it is one copy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from dbray.bases import Backbone, Base
from dbray.bases.resident import Changes, Layout, Target, Weights
from dbray.errors import BaseError, Diverged
from dbray.method import delta
from dbray.method.with_tokens import Together, WithTokens, trained_parts
from dbray.spec.methods import Delta as DeltaSettings
from dbray.spec.methods import Full as FullSettings
from dbray.spec.recipe import Recipe
from dbray.training.rates import Rate

_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
_MAX_HEADER_BYTES = 100 * 2**20
_SUFFIX = ".safetensors"


class Full(WithTokens):
    """See the module, and `dbray.method.methods.Method`."""

    def prepare(
        self, backbone: Backbone, network: nn.Module, recipe: Recipe, num_slots: int
    ) -> None:
        """All parameters of the trained parts."""
        family = backbone.base.family
        for part in trained_parts(backbone.base, recipe):
            network.get_submodule(part).requires_grad_(True)
        network.__dict__["undecayed"] = [f"{family.denoiser}.{name}" for name in family.undecayed]
        if _delta(recipe) is not None:
            trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
            base = {name: p.detach().to("cpu", copy=True) for name, p in trained.items()}
            network.__dict__["base"] = base

    def rates(self, network: nn.Module, recipe: Recipe) -> Mapping[str, Rate]:
        """The recipe's own for what does not decay: parameters with a rate of their own do not."""
        usual = Rate(recipe.learning_rate, recipe.rate_schedule)
        undecayed = dict.fromkeys(network.__dict__["undecayed"], usual)
        return {**undecayed, **super().rates(network, recipe)}

    def publish_own(
        self, network: nn.Module, weights: Mapping[str, Tensor], recipe: Recipe
    ) -> dict[str, bytes]:
        """One file for each trained part, or the files of a delta, in the publish_precision."""
        dtype = torch.float16 if recipe.publish_precision == "fp16" else torch.float32
        if (settings := _delta(recipe)) is not None:
            return delta.publish(network, network.__dict__["base"], weights, settings.rank, dtype)
        parts = _by_part(weights, dtype)
        if not all(bool(t.isfinite().all()) for part in parts.values() for t in part.values()):
            raise Diverged("the weights are not finite; lower learning_rate, or use precision and "
                           "publish_precision fp32")  # fmt: skip
        return {f"{part}{_SUFFIX}": save(tensors) for part, tensors in parts.items()}

    def read_own(self, contents: Mapping[str, Tensor], layouts: Mapping[str, Layout]) -> Weights:
        """Each file as one flat tensor, or a delta."""
        if delta.FILE in contents:
            return Together(tuple(delta.read(contents, layouts)))
        parts = {}
        for name, content in contents.items():
            part = name.removesuffix(_SUFFIX)
            if part not in layouts:
                raise BaseError(f"the base has no part {part!r} to replace")
            parts[part] = flatten(content, layouts[part], name)
        return Flat(parts)

    def num_own(self, base: Base, recipe: Recipe) -> int:
        """All parameters of the trained parts."""
        return sum(base.num_parameters(part) for part in trained_parts(base, recipe))

    def published_bytes(self, base: Base, recipe: Recipe) -> int:
        """See Method."""
        if (settings := _delta(recipe)) is None:
            return super().published_bytes(base, recipe)
        width = 2 if recipe.publish_precision == "fp16" else 4
        return delta.size_bytes(base, trained_parts(base, recipe), settings.rank, width)

    def about(self, files: Mapping[str, bytes]) -> dict[str, str]:
        """The measured error of a delta."""
        return delta.about(files) if delta.FILE in files else {}

    def num_frozen(self, base: Base, recipe: Recipe) -> int:
        """What remains of the models."""
        return super().num_frozen(base, recipe) - self.num_own(base, recipe)


METHOD = Full()


def _delta(recipe: Recipe) -> DeltaSettings | None:
    return recipe.method.publish if isinstance(recipe.method, FullSettings) else None


def _by_part(weights: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, dict[str, Tensor]]:
    """Split 'unet.conv_in.weight' into part and name."""
    parts: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in weights.items():
        part, name = full_name.split(".", 1)
        parts.setdefault(part, {})[name] = tensor.to(dtype).contiguous()
    return parts


@dataclass(frozen=True)
class Flat:
    """Whole parts in memory, each one flat tensor in the order of its layout."""

    tensors: Mapping[str, Tensor]

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
        """Whole parts."""
        return dict.fromkeys(self.tensors)

    def prepare(self, device: torch.device) -> Flat:
        """Copy to the device as float32, the type of the resident models."""
        return Flat({
            part: tensor.to(device, torch.float32, copy=True)
            for part, tensor in self.tensors.items()
        })  # fmt: skip

    def write(self, resident: Target) -> None:
        """See Weights."""
        for part, tensor in self.tensors.items():
            resident.overwrite(part, tensor)


def flatten(content: Tensor, layout: Layout, name: str) -> Tensor:
    """Return the tensors of a safetensors file as one flat tensor in the order of a layout.

    This is a view of the bytes if they are in that order already, as `safetensors` writes them.

    Raises:
        BaseError: it is not a safetensors file, or its tensors do not fit the layout.
    """
    flat = _in_order(content, layout)
    if flat is not None:
        return flat
    try:
        tensors = load(content.numpy().tobytes())
    except (SafetensorError, ValueError, KeyError) as exc:
        raise BaseError(f"{name} cannot be read: {exc}") from exc
    if {key: value.shape for key, value in tensors.items()} != dict(layout):
        raise BaseError(f"{name} does not fit the base")
    dtypes = {tensor.dtype for tensor in tensors.values()}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    return torch.cat([tensors[key].to(dtype).flatten() for key in layout])


def _in_order(content: Tensor, layout: Layout) -> Tensor | None:
    """Return the data of a safetensors file if it has exactly the layout's tensors, of one type."""
    head = content[:8].numpy().tobytes()
    start = 8 + int.from_bytes(head, "little")
    if len(head) < 8 or start > min(len(content), _MAX_HEADER_BYTES) or start % 8:
        return None
    try:
        header: dict[str, Any] = json.loads(content[8:start].numpy().tobytes())
        header.pop("__metadata__", None)
        entries = sorted(header.items(), key=lambda entry: entry[1]["data_offsets"])
        found = [(name, entry["shape"], entry["dtype"]) for name, entry in entries]
        ends = [entry["data_offsets"][1] for _, entry in entries]
        begins = [entry["data_offsets"][0] for _, entry in entries]
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
        return None
    dtype = _DTYPES.get(found[0][2]) if found else None
    wanted = [(name, list(shape), found[0][2]) for name, shape in layout.items()] if found else []
    if dtype is None or found != wanted or begins != [0, *ends[:-1]]:
        return None
    num_values = sum(shape.numel() for shape in layout.values())
    if ends[-1] != len(content) - start or ends[-1] != num_values * dtype.itemsize:
        return None
    return content[start:].view(dtype)
