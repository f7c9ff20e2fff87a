"""An adapter in files: the factors of each layer, and the published format.

Owns the published format: diffusers' keys ('unet.<path>.lora_A.weight') and the ranks and alphas in
the metadata, as `load_lora_weights` of diffusers reads them. Formats of other tools are in
`export`. Layers are named '<part>.<path>'; the path of a layer of a text encoder has no
'text_model.', a prefix of some versions of transformers.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from dbray.errors import RegistryError

METADATA_KEY = "lora_adapter_metadata"
_NESTED = "text_model."


@dataclass(frozen=True)
class Factors:
    """One layer's factors: down (R, *inputs), up (O, R[, 1, 1]), DoRA's magnitude (O,)."""

    down: Tensor
    up: Tensor
    alpha: float
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        """Rank of the factors; `alpha / rank` scales their product."""
        return len(self.down)


Adapters: TypeAlias = Mapping[str, Factors]
"""A whole adapter: factors by layer, e.g. 'unet.mid_block.attentions.0.proj_in'."""


def canonical(layer: str) -> str:
    """Return a layer's name in adapters: without the 'text_model.' of some text encoders."""
    part, _, path = layer.partition(".")
    return f"{part}.{path.removeprefix(_NESTED)}"


def collect(state: Mapping[str, Tensor], alpha: float) -> dict[str, Factors]:
    """Make an adapter from the state of a slot; the children of the module are the parts."""
    layers = [key.removesuffix(".lora_A.weight") for key in state if key.endswith("lora_A.weight")]
    return {canonical(layer): _factors(state, layer, alpha) for layer in layers}


def to_state(
    adapter: Adapters, layers: Iterable[str]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Make the state of a slot, and the scale of each layer, for a module's own `layers`.

    Raises:
        RegistryError: the module lacks a layer of the adapter.
    """
    own = {canonical(layer): layer for layer in layers}
    if missing := set(adapter) - set(own):
        raise RegistryError(f"the base has no layer {min(missing)!r}, which the adapter changes")
    state: dict[str, Tensor] = {}
    for layer, factors in adapter.items():
        state |= _tensors(own[layer], factors)
    return state, {own[layer]: f.alpha / f.rank for layer, f in adapter.items()}


def metadata_of(data: bytes) -> dict[str, str]:
    """Return the metadata in the header of a safetensors file; empty if it has none."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return header.get("__metadata__", {})


def to_published(adapter: Adapters) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Make the tensors and the metadata of a published file."""
    tensors: dict[str, Tensor] = {}
    config: dict[str, Any] = {}
    for part in sorted({layer.partition(".")[0] for layer in adapter}):
        layers = {
            x.removeprefix(f"{part}."): f for x, f in adapter.items() if x.startswith(f"{part}.")
        }
        # PEFT also matches a pattern to the end of a path, unless it is anchored.
        anchor = "" if part.startswith("text_encoder") else "^"
        config |= {f"{part}.{key}": value for key, value in _config(layers, anchor).items()}
        for path, factors in layers.items():
            nested = _NESTED if part.startswith("text_encoder") and "encoder." in path else ""
            written = _tensors(f"{part}.{nested}{path}", factors)
            # Transformers finds a magnitude only with this suffix, which PEFT omits.
            tensors |= {f"{k}.weight" if k.endswith("vector") else k: t for k, t in written.items()}
    # One entry only: safetensors writes several in a random order.
    return tensors, {METADATA_KEY: json.dumps(config, sort_keys=True)}


def from_published(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> dict[str, Factors]:
    """Read the tensors and the metadata of a published file.

    Raises:
        RegistryError: it is not a published adapter.
    """
    try:
        config = json.loads(metadata[METADATA_KEY])
        layers = {key.rpartition(".lora_")[0] for key in tensors}
        adapter = {
            canonical(layer): _factors(tensors, layer, alpha_of(config, canonical(layer)))
            for layer in sorted(layers)
        }
    except (KeyError, ValueError) as exc:
        raise RegistryError(f"not a published adapter: {exc}") from exc
    return adapter


def _config(layers: Mapping[str, Factors], anchor: str) -> dict[str, Any]:
    """Describe the layers of a part in the fields of PEFT's LoraConfig."""
    ranks = {path: f.rank for path, f in layers.items()}
    alphas = {path: f.alpha for path, f in layers.items()}
    rank, alpha = _commonest(ranks.values()), _commonest(alphas.values())
    return {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted(layers),
        "rank_pattern": {anchor + path: r for path, r in ranks.items() if r != rank},
        "alpha_pattern": {anchor + path: a for path, a in alphas.items() if a != alpha},
        "use_dora": any(f.magnitude is not None for f in layers.values()),
        "bias": "none",
    }


def _commonest(values: Iterable[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]


def alpha_of(config: Mapping[str, Any], layer: str) -> float:
    """Return the alpha of a layer from a file's metadata. Raises KeyError if it has none."""
    part, _, path = layer.partition(".")
    pattern = config.get(f"{part}.alpha_pattern", {})
    return float(pattern.get(path, pattern.get(f"^{path}", config[f"{part}.lora_alpha"])))


def _factors(tensors: Mapping[str, Tensor], layer: str, alpha: float) -> Factors:
    magnitude = tensors.get(f"{layer}.lora_magnitude_vector")
    if magnitude is None:
        magnitude = tensors.get(f"{layer}.lora_magnitude_vector.weight")
    return Factors(
        tensors[f"{layer}.lora_A.weight"],
        tensors[f"{layer}.lora_B.weight"],
        alpha,
        None if magnitude is None else magnitude.flatten(),
    )


def _tensors(layer: str, factors: Factors) -> dict[str, Tensor]:
    down, up = factors.down.contiguous(), factors.up.contiguous()  # required by safetensors
    tensors = {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}
    if factors.magnitude is not None:
        shape = (-1,) if factors.down.ndim == 2 else (1, -1, 1, 1)
        tensors[f"{layer}.lora_magnitude_vector"] = factors.magnitude.view(shape)
    return tensors
