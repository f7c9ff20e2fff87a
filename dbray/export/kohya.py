"""LoRA files for UNets, in kohya's keys: A1111, ComfyUI and most other tools read them.

'lora_unet_<path>.lora_down.weight', '.lora_up.weight' and '.alpha', dots of the path written as
underscores. The alpha is the real one: diffusers' own exporter writes the rank in its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from dbray.errors import RegistryError
from dbray.export.source import Source
from dbray.method.factors import Adapters, Factors

SUFFIX = ".safetensors"

_ONE_ENCODER = {"unet": "lora_unet", "text_encoder": "lora_te"}
_TWO_ENCODERS = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}


def why_not(source: Source) -> str | None:
    """See Format."""
    family = source.base.family
    if family.denoiser != "unet" or family.autoencoder is None:
        return "kohya's keys are for UNets over latents"
    return source.why_no_factors()


def export(source: Source, output: Path) -> str:
    """See Format."""
    output.parent.mkdir(parents=True, exist_ok=True)
    save_file(to_kohya(source.adapter, len(source.base.family.text_encoders)), output)
    return source.load_lora(output)


def to_kohya(adapter: Adapters, num_text_encoders: int) -> dict[str, Tensor]:
    """Make the tensors of a file; the base's number of text encoders decides their prefixes.

    Raises:
        RegistryError: the adapter changes a part that the format has no name for.
    """
    prefixes = _TWO_ENCODERS if num_text_encoders == 2 else _ONE_ENCODER
    tensors: dict[str, Tensor] = {}
    for layer, factors in adapter.items():
        tensors |= layer_tensors(kohya_name(layer, prefixes), factors, ("lora_down", "lora_up"))
    return tensors


def kohya_name(layer: str, prefixes: Mapping[str, str]) -> str:
    """Name a layer as kohya does. Raises RegistryError for a part without a prefix."""
    part, _, path = layer.partition(".")
    if part not in prefixes:
        raise RegistryError(f"kohya's keys have no name for the part {part!r}; they are for UNets")
    nested = "text_model." if part != "unet" and path.startswith("encoder.") else ""
    return f"{prefixes[part]}_{nested}{path}".replace(".", "_")


def layer_tensors(name: str, factors: Factors, pair: tuple[str, str]) -> dict[str, Tensor]:
    """A layer's tensors under a name; `pair` are the words for its down and up factors."""
    tensors = {
        f"{name}.{pair[0]}.weight": factors.down.contiguous(),
        f"{name}.{pair[1]}.weight": factors.up.contiguous(),
        f"{name}.alpha": torch.tensor(float(factors.alpha)),
    }
    if factors.magnitude is not None:
        shape = (-1,) + (1,) * (factors.down.ndim - 1)
        tensors[f"{name}.dora_scale"] = factors.magnitude.view(shape)
    return tensors
