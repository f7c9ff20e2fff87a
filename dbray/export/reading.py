"""Adapters trained by other tools: kohya's, ComfyUI's, diffusers' and PEFT's keys.

Owns finding the layers of a base that a file's keys name. Every key has to name one: what does not
match is never dropped in silence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from dbray.errors import RegistryError
from dbray.export.kohya import kohya_name
from dbray.export.original_names import transformer_names, unet_names
from dbray.method.factors import METADATA_KEY, Factors, alpha_of, canonical

Shapes: TypeAlias = Mapping[str, Sequence[int]]
"""Shape of the weight of each layer of a base, by '<part>.<path>'."""

_FIELDS = {
    ".lora_down.weight": "down", ".lora_A.weight": "down", ".lora_A.default.weight": "down",
    ".lora_up.weight": "up", ".lora_B.weight": "up", ".lora_B.default.weight": "up",
    ".alpha": "alpha", ".dora_scale": "magnitude", ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
}  # fmt: skip
_KOHYA = (
    {"unet": "lora_unet", "text_encoder": "lora_te"},
    {"unet": "lycoris", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
)
_DOTTED = ("", "diffusion_model.", "transformer.", "unet.", "base_model.model.")
_FLAT = ("lora_unet_", "lora_transformer_", "lycoris_")


@dataclass
class _Found:
    """The tensors of one name of a file."""

    down: Tensor | None = None
    up: Tensor | None = None
    alpha: Tensor | None = None
    magnitude: Tensor | None = None


def read_adapter(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], shapes: Shapes
) -> dict[str, Factors]:
    """Read an adapter of any known format, for a base whose layers have these shapes.

    Raises:
        RegistryError: no key, or not every key, names a layer of the base; or a shape differs.
    """
    layers = _layers_by_name(shapes)
    config = json.loads(metadata.get(METADATA_KEY, "{}"))
    found, unknown = _by_name(tensors)
    unknown += [name for name in found if name not in layers]
    if unknown or not found:
        share = f"{len(unknown)} of {len(found)} names" if found else "all keys"
        example = f", e.g. {min(unknown)!r}" if unknown else ""
        raise RegistryError(f"{share} in the file name no layer of the base{example}: it was made "
                            "for another base, or is not a LoRA")  # fmt: skip
    own = {canonical(layer): tuple(shape) for layer, shape in shapes.items()}
    adapter: dict[str, Factors] = {}
    for name, parts in found.items():
        adapter |= _split(name, parts, {layer: own[layer] for layer in layers[name]}, config)
    return adapter


def _by_name(tensors: Mapping[str, Tensor]) -> tuple[dict[str, _Found], list[str]]:
    """Group tensors by the name before a known ending; the keys without one come second."""
    found: dict[str, _Found] = {}
    unknown: list[str] = []
    for key, tensor in tensors.items():
        ending = next((end for end in _FIELDS if key.endswith(end)), None)
        if ending is None:
            unknown.append(key)
        else:
            setattr(found.setdefault(key.removesuffix(ending), _Found()), _FIELDS[ending], tensor)
    return found, unknown


def _layers_by_name(shapes: Shapes) -> dict[str, list[str]]:
    """Every name under which files know layers; a name of several layers lists them in order."""
    unet = unet_names(x.removeprefix("unet.") for x in shapes if x.startswith("unet."))
    names: dict[str, list[str]] = {}
    # q, k, v is the order in which diffusers' blocks define them, and that of fused layers.
    for layer in map(canonical, sorted(shapes, key=_fused_order)):
        for name in _names(layer, unet):
            names.setdefault(name, []).append(layer)
    return names


def _fused_order(layer: str) -> tuple[int, str]:
    kinds = ("q", "k", "v", "mlp")
    stem = layer.rpartition(".")[2].removeprefix("to_").removeprefix("add_").removeprefix("proj_")
    stem = stem.removesuffix("_proj")
    return (kinds.index(stem) if stem in kinds else len(kinds)), layer


def _names(layer: str, unet: Mapping[str, str]) -> Iterator[str]:
    part, _, path = layer.partition(".")
    if part.startswith("text_encoder"):
        yield from (layer, f"{part}.text_model.{path}")
        yield from {kohya_name(layer, prefixes) for prefixes in _KOHYA if part in prefixes}
        return
    originals = transformer_names(path) if part == "transformer" else [unet.get(path, path)]
    for name in {path, *originals}:
        yield from (prefix + name for prefix in _DOTTED)
        yield from (prefix + name.replace(".", "_") for prefix in _FLAT)


def _split(
    name: str, parts: _Found, layers: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]
) -> dict[str, Factors]:
    """Make the factors of the layers that a name stands for: rows of `up`, one `down` for all."""
    if parts.down is None or parts.up is None:
        raise RegistryError(f"{name!r} lacks one of its two factors")
    outputs = [shape[0] for shape in layers.values()]
    if len(parts.up) != sum(outputs):
        raise RegistryError(
            f"{name!r} has {len(parts.up)} outputs, the base's layer {sum(outputs)}"
        )
    magnitude = None if parts.magnitude is None else parts.magnitude.flatten().split(outputs)
    adapter = {}
    for index, (layer, up) in enumerate(zip(layers, parts.up.split(outputs), strict=True)):
        down, up = _fitted(name, parts.down, up, layers[layer])
        alpha = _alpha(parts, config, layer, len(down))
        adapter[layer] = Factors(down, up, alpha, None if magnitude is None else magnitude[index])
    return adapter


def _fitted(name: str, down: Tensor, up: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Give factors the dimensions of the layer: pointwise convolutions are stored in both ways."""
    rank, pointwise = len(down), (1,) * (len(shape) - 2)
    try:
        down = down.reshape(rank, *shape[1:]).float()
        return down, up.reshape(len(up), rank, *pointwise).float().contiguous()
    except RuntimeError as exc:
        have = f"{tuple(down.shape)} and {tuple(up.shape)}"
        raise RegistryError(
            f"{name!r} has the shapes {have}; the base's layer has {shape}"
        ) from exc


def _alpha(parts: _Found, config: Mapping[str, Any], layer: str, rank: int) -> float:
    """The alpha in the tensors or in the metadata; without either it is the rank."""
    if parts.alpha is not None:
        return float(torch.as_tensor(parts.alpha))
    try:
        return alpha_of(config, layer)
    except KeyError:
        return float(rank)
