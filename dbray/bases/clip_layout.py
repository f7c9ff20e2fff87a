"""The tensors that a CLIP text encoder's file must have, from its configuration.

transformers fills missing tensors with random numbers, different ones in each process, and only
warns. So names and shapes are compared before anything is loaded; a common prefix is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dbray.errors import BaseError

_FIRST = "embeddings.token_embedding.weight"
_NOT_WEIGHTS = ("position_ids", "text_projection.weight")
Shapes = Mapping[str, tuple[int, ...]]


def prefix_of(names: Mapping[str, Any]) -> str:
    """Return the common prefix of all names in a file, such as 'text_model.'; "" if unknown."""
    first = next((name for name in names if name.endswith(_FIRST)), _FIRST)
    return first.removesuffix(_FIRST)


def expected(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the tensors of a CLIPTextModel, without prefix."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        _FIRST: (config["vocab_size"], width),
        "embeddings.position_embedding.weight": (config["max_position_embeddings"], width),
        "final_layer_norm.weight": (width,),
        "final_layer_norm.bias": (width,),
    }
    for index in range(config["num_hidden_layers"]):
        layer = f"encoder.layers.{index}"
        for name in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{layer}.{name}.{kind}": (width,) for kind in ("weight", "bias")}
        sizes = {f"self_attn.{name}_proj": (width, width) for name in ("k", "v", "q", "out")}
        sizes |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
        for name, (outputs, inputs) in sizes.items():
            shapes[f"{layer}.{name}.weight"] = outputs, inputs
            shapes[f"{layer}.{name}.bias"] = (outputs,)
    return shapes


def check(part: str, found: Shapes, config: Mapping[str, Any]) -> None:
    """Raise BaseError if a tensor is missing, is not expected, or has another shape."""
    prefix = prefix_of(found)
    own = {name.removeprefix(prefix): shape for name, shape in found.items()}
    wanted = expected(config)
    unknown = [name for name in own if name not in wanted and not name.endswith(_NOT_WEIGHTS)]
    problems = {
        "lacks": sorted(wanted.keys() - own.keys()),
        "has unknown": sorted(unknown),
        "has misshapen": sorted(n for n in wanted if n in own and own[n] != wanted[n]),
    }
    for what, names in problems.items():
        if names:
            raise BaseError(
                f"{part} {what} tensors: {names[0]}, {len(names)} in all; probably it was "
                "converted by or for another program. Write the folder again with "
                "save_pretrained, or choose another base"
            )
