"""What the authors of a model call the layers that diffusers has renamed.

Checkpoints and LoRA files of other tools use these names. Some original layers are several of
diffusers' in one ('qkv'): their parts share a name, in the order in which they are stacked.

Sources: CompVis/latent-diffusion and Stability-AI/generative-models (UNets), black-forest-labs/flux
and flux2, Stability-AI/sd3.5, Tongyi-MAI/Z-Image, each beside diffusers' converter for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_FLUX = {
    r"attn\.to_[qkv]": "img_attn.qkv",
    r"attn\.add_[qkv]_proj": "txt_attn.qkv",
    r"attn\.to_out\.0": "img_attn.proj",
    r"attn\.to_add_out": "txt_attn.proj",
    r"ff\.(net\.0\.proj|linear_in)": "img_mlp.0",
    r"ff\.(net\.2|linear_out)": "img_mlp.2",
    r"ff_context\.(net\.0\.proj|linear_in)": "txt_mlp.0",
    r"ff_context\.(net\.2|linear_out)": "txt_mlp.2",
    r"norm1\.linear": "img_mod.lin",
    r"norm1_context\.linear": "txt_mod.lin",
}
_FLUX_SINGLE = {
    r"attn\.to_[qkv]|proj_mlp|attn\.to_qkv_mlp_proj": "linear1",
    r"proj_out|attn\.to_out": "linear2",
    r"norm\.linear": "modulation.lin",
}
_SD3 = {
    r"attn\.to_[qkv]": "x_block.attn.qkv",
    r"attn\.add_[qkv]_proj": "context_block.attn.qkv",
    r"attn\.to_out\.0": "x_block.attn.proj",
    r"attn\.to_add_out": "context_block.attn.proj",
    r"ff\.net\.0\.proj": "x_block.mlp.fc1",
    r"ff\.net\.2": "x_block.mlp.fc2",
    r"ff_context\.net\.0\.proj": "context_block.mlp.fc1",
    r"ff_context\.net\.2": "context_block.mlp.fc2",
}
_Z_IMAGE = {r"attention\.to_[qkv]": "attention.qkv", r"attention\.to_out\.0": "attention.out"}
_BLOCKS = (
    ("transformer_blocks", "double_blocks", _FLUX),
    ("single_transformer_blocks", "single_blocks", _FLUX_SINGLE),
    ("transformer_blocks", "joint_blocks", _SD3),
    ("layers", "layers", _Z_IMAGE),
    ("noise_refiner", "noise_refiner", _Z_IMAGE),
    ("context_refiner", "context_refiner", _Z_IMAGE),
)
"""Names of blocks in diffusers and in the original, and of the layers in such a block."""

_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_UNET_ENDS = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
_AUTOENCODER = {
    r"\.resnets\.": ".block.", r"(down|up)samplers\.0": r"\1sample",
    "conv_shortcut": "nin_shortcut", "conv_norm_out": "norm_out",
    r"mid_block\.attentions\.0": "mid.attn_1", r"\.group_norm": ".norm",
    r"\.to_([qkv])$": r".\1", r"\.to_out\.0": ".proj_out",
}  # fmt: skip
_BLOCK = re.compile(
    r"(down_blocks\.\d+|up_blocks\.\d+|mid_block)\.(resnets|attentions|downsamplers|upsamplers)"
    r"\.(\d+)\.(.+)"
)


def transformer_names(path: str) -> list[str]:
    """Original names of a layer of a transformer, in each family that has this path."""
    block, _, rest = path.partition(".")
    index, _, layer = rest.partition(".")
    return [
        f"{original}.{index}.{name}"
        for ours, original, names in _BLOCKS
        for pattern, name in names.items()
        if block == ours and re.fullmatch(pattern, layer)
    ]


def unet_names(paths: Iterable[str]) -> dict[str, str]:
    """Original name of each layer of a UNet, by its path in diffusers; all paths are needed."""
    paths = list(paths)
    resnets = {path.split(".")[3] for path in paths if path.startswith("down_blocks.0.resnets.")}
    with_attention = {path.partition(".attentions.")[0] for path in paths if ".attentions." in path}
    names = {path: _UNET_ENDS[path] for path in paths if path in _UNET_ENDS}
    for path in paths:
        if match := _BLOCK.fullmatch(path):
            block, kind, index, rest = match.groups()
            place = _place(block, kind, int(index), len(resnets))
            if kind == "resnets":
                rest = _RESNET[rest]
            elif kind == "downsamplers":
                rest = "op"
            elif kind == "upsamplers":
                place += ".2" if block in with_attention else ".1"
            names[path] = f"{place}.{rest}"
    return names


def autoencoder_names(paths: Iterable[str]) -> dict[str, str]:
    """Original name of each layer of an AutoencoderKL, by its path in diffusers; all are needed."""
    paths = list(paths)
    levels = {path.split(".")[2] for path in paths if path.startswith("encoder.down_blocks.")}

    def level(match: re.Match[str]) -> str:
        side, number = match.groups()  # the decoder's levels are counted from the finest
        return f"{side}.{number if side == 'down' else len(levels) - 1 - int(number)}"

    names = {}
    for path in paths:
        name = re.sub(r"\b(down|up)_blocks\.(\d+)", level, path)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        for pattern, original in _AUTOENCODER.items():
            name = re.sub(pattern, original, name)
        names[path] = name
    return names


def _place(block: str, kind: str, index: int, num_resnets: int) -> str:
    """Where a part of a block stands in the original's flat lists of blocks."""
    column = 1 if kind == "attentions" else 0
    if block == "mid_block":
        return f"middle_block.{1 if column else 2 * index}"
    side, _, number = block.partition(".")
    first = int(number) * (num_resnets + 1)
    if kind == "upsamplers":  # in the row of the block's last resnet, at its end
        return f"output_blocks.{first + num_resnets}"
    if side == "up_blocks":
        return f"output_blocks.{first + index}.{column}"
    row = num_resnets if kind == "downsamplers" else index
    return f"input_blocks.{first + row + 1}.{column}"
