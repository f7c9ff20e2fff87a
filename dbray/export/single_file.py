"""The checkpoint of Stable Diffusion 1, 2 and XL in one file: A1111, ComfyUI, diffusers open it.

It holds the UNet, the autoencoder and the text encoders under the names of CompVis/latent-diffusion
and Stability-AI/generative-models; the text encoder of version 2 and the second one of XL in
OpenCLIP's. Other programs tell the versions apart by those names. In float16, as such files usually
are, where the model was published in float16.
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
_PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
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
    if source.pipeline_class not in _PIPELINES:
        return "single files are of Stable Diffusion 1, 2 and XL"
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
    unet, vae = _state(source, "unet"), _state(source, "vae")
    tensors = _renamed("model.diffusion_model.", unet, unet_names(_layers(unet)))
    tensors |= _renamed("first_stage_model.", vae, autoencoder_names(_layers(vae)))
    for key in [key for key in tensors if key.startswith("first_stage_model.") and
                ".attn_1." in key and key.endswith(_POINTWISE)]:  # fmt: skip
        tensors[key] = tensors[key][..., None, None]
    return tensors | _texts(source) | _prediction(source)


def _texts(source: Source) -> dict[str, Tensor]:
    """The text encoders: OpenCLIP's and CLIP's have different names."""
    text = _state(source, "text_encoder")
    if len(source.base.family.text_encoders) == 2:
        second = to_open_clip(_state(source, "text_encoder_2"))
        first = _prefixed("conditioner.embedders.0.transformer.text_model.", text)
        return first | _prefixed("conditioner.embedders.1.model.", second)
    if source.base.layout.config("text_encoder").get("hidden_act") == "gelu":
        return _prefixed("cond_stage_model.model.", to_open_clip(text))
    return _prefixed("cond_stage_model.transformer.text_model.", text)


def _prediction(source: Source) -> dict[str, Tensor]:
    """Empty tensors by which other programs know what an XL predicts: no weight shows it."""
    if source.pipeline_class != "StableDiffusionXLPipeline":
        return {}
    config = source.base.layout.config("scheduler")
    if config.get("prediction_type") != "v_prediction":
        return {}
    has_zero_snr = config.get("rescale_betas_zero_snr")
    return {name: torch.zeros(0) for name in ["v_pred", *["ztsnr"] * bool(has_zero_snr)]}


def to_open_clip(text: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name the tensors of a text encoder as OpenCLIP does.

    Of version 2, diffusers leaves out the last layer and the text projection, whose outputs are not
    used, but other programs expect them: the layer before and the identity stand in for them.
    """
    tensors = {_OPEN_CLIP_ENDS[name]: text[name] for name in _OPEN_CLIP_ENDS}
    projection = text.get("text_projection.weight")
    num_left_out = 1 if projection is None else 0
    if projection is None:
        projection = torch.eye(len(text["final_layer_norm.weight"]))
    tensors["text_projection"] = projection.T
    names = {name.split(".", 3)[2] for name in text if name.startswith("encoder.layers.")}
    for index in range(len(names) + num_left_out):
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


def _state(source: Source, part: str) -> dict[str, Tensor]:
    """The tensors of a part; those of text encoders without the 'text_model.' that some have."""
    state = source.backbone.models[part].state_dict()
    return {name.removeprefix("text_model."): tensor.cpu() for name, tensor in state.items()}


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _layers(state: dict[str, Tensor]) -> list[str]:
    return [name.rpartition(".")[0] for name in state]


def _renamed(prefix: str, state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """Give the tensors of a part the names that its layers have in the original."""
    renamed = {}
    for name, tensor in state.items():
        layer, _, kind = name.rpartition(".")
        renamed[f"{prefix}{names[layer]}.{kind}"] = tensor
    return renamed
