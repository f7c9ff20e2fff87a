"""The checkpoint of Stable Diffusion 1 and 2 in one file, as A1111, ComfyUI and diffusers open it.

It holds the UNet, the autoencoder and the text encoder under the names of CompVis/latent-diffusion;
the text encoder of version 2 in OpenCLIP's. Other programs tell the versions apart by those names.
In float16, as such files usually are, where the model was published in float16.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from dbray.export.original_names import autoencoder_names, unet_names
from dbray.export.source import Source

SUFFIX = ".safetensors"
_POINTWISE = (".q.weight", ".k.weight", ".v.weight", ".proj_out.weight")
_OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_OPEN_CLIP_ENDS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}


def why_not(source: Source) -> str | None:
    """See Format."""
    if source.pipeline_class != "StableDiffusionPipeline":
        return "single files are of Stable Diffusion 1 and 2"
    return None


def export(source: Source, output: Path) -> str:
    """See Format."""
    output.parent.mkdir(parents=True, exist_ok=True)
    record = source.record
    is_half = record is None or record.recipe.publish_precision == "fp16"
    dtype = torch.float16 if is_half else torch.float32
    tensors = to_single_file(source)
    save_file({key: value.to(dtype).contiguous() for key, value in tensors.items()}, output)
    arguments = f"{str(output)!r}, config={str(source.base.folder)!r}, torch_dtype=torch.float32"
    method = f"diffusers.{source.pipeline_class}.from_single_file"
    return f"import diffusers, torch; pipe = {method}({arguments})"


def to_single_file(source: Source) -> dict[str, Tensor]:
    """Make the tensors of a file of a loaded model."""
    unet, vae, text = (
        {name: tensor.cpu() for name, tensor in source.backbone.models[part].state_dict().items()}
        for part in ("unet", "vae", "text_encoder")
    )
    text = {name.removeprefix("text_model."): tensor for name, tensor in text.items()}
    tensors = _renamed("model.diffusion_model.", unet, unet_names(_layers(unet)))
    tensors |= _renamed("first_stage_model.", vae, autoencoder_names(_layers(vae)))
    for key in [key for key in tensors if key.startswith("first_stage_model.") and
                ".attn_1." in key and key.endswith(_POINTWISE)]:  # fmt: skip
        tensors[key] = tensors[key][..., None, None]
    if source.base.layout.config("text_encoder").get("hidden_act") == "gelu":
        return tensors | {f"cond_stage_model.model.{k}": v for k, v in to_open_clip(text).items()}
    prefix = "cond_stage_model.transformer.text_model."
    return tensors | {prefix + name: tensor for name, tensor in text.items()}


def to_open_clip(text: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name the tensors of a text encoder as OpenCLIP does.

    Diffusers leaves out the last layer, whose output version 2 does not use, but other programs
    expect it: the one before stands in for it, and the identity for the text projection.
    """
    tensors = {_OPEN_CLIP_ENDS[name]: text[name] for name in _OPEN_CLIP_ENDS}
    tensors["text_projection"] = torch.eye(len(text["final_layer_norm.weight"]))
    names = {name.split(".", 3)[2] for name in text if name.startswith("encoder.layers.")}
    for index in range(len(names) + 1):
        own = f"encoder.layers.{min(index, len(names) - 1)}."
        layer = {name.removeprefix(own): t for name, t in text.items() if name.startswith(own)}
        tensors |= _open_clip_layer(f"transformer.resblocks.{index}.", layer)
    return tensors


def _open_clip_layer(prefix: str, layer: dict[str, Tensor]) -> dict[str, Tensor]:
    tensors = {}
    for kind in ("weight", "bias"):
        qkv = [layer[f"self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
        tensors[f"{prefix}attn.in_proj_{kind}"] = torch.cat(qkv)
        for ours, name in _OPEN_CLIP.items():
            tensors[f"{prefix}{name}.{kind}"] = layer[f"{ours}.{kind}"].clone()
    return tensors


def _layers(state: dict[str, Tensor]) -> list[str]:
    return [name.rpartition(".")[0] for name in state]


def _renamed(prefix: str, state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """Give the tensors of a part the names that its layers have in the original."""
    renamed = {}
    for name, tensor in state.items():
        layer, _, kind = name.rpartition(".")
        renamed[f"{prefix}{names[layer]}.{kind}"] = tensor
    return renamed
