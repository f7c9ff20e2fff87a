"""LoRA files for transformers, in keys that ComfyUI reads.

'<prefix><path>.lora_A.weight', '.lora_B.weight' and the real '.alpha', where the path is
diffusers'. ComfyUI (comfy/lora.py, model_lora_keys_unet) takes such paths after 'diffusion_model.'
where it keeps or maps diffusers' names itself, and after 'transformer.' for the others, whose fused
layers it then patches in slices. Kohya's keys of diffusers' paths, which diffusers' own exporter
writes for Flux, match nothing there. For some families diffusers refuses a file with alphas: there
they are multiplied into the factors, which both programs take for the same.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from dbray.errors import RegistryError
from dbray.export.kohya import layer_tensors
from dbray.export.source import Source
from dbray.method.factors import Adapters

SUFFIX = ".safetensors"
PREFIXES = {
    "FluxTransformer2DModel": "transformer.",
    "Flux2Transformer2DModel": "transformer.",
    "SD3Transformer2DModel": "transformer.",
    "QwenImageTransformer2DModel": "diffusion_model.",
    "ZImageTransformer2DModel": "diffusion_model.",
}
"""What stands before a path, by the class of the denoiser."""
_WITHOUT_ALPHA = ("Flux2Transformer2DModel", "SD3Transformer2DModel")
"""Classes whose LoRA files diffusers reads only without alphas."""


def why_not(source: Source) -> str | None:
    """See Format."""
    denoiser = source.denoiser_config().get("_class_name")
    if denoiser not in PREFIXES:
        return f"its keys are for transformers, and the base's denoiser is a {denoiser}"
    return source.why_no_factors()


def export(source: Source, output: Path) -> str:
    """See Format."""
    output.parent.mkdir(parents=True, exist_ok=True)
    save_file(to_comfyui(source.adapter, source.denoiser_config()["_class_name"]), output)
    return source.load_lora(output)


def to_comfyui(adapter: Adapters, denoiser: str) -> dict[str, Tensor]:
    """Make the tensors of a file for a class of denoiser ('FluxTransformer2DModel').

    Raises:
        RegistryError: the class is not among PREFIXES.
    """
    if denoiser not in PREFIXES:
        raise RegistryError(f"no ComfyUI keys are known for {denoiser}; choose --format lora")
    tensors: dict[str, Tensor] = {}
    for layer, factors in adapter.items():
        part, _, path = layer.partition(".")
        prefix = PREFIXES[denoiser] if part == "transformer" else f"{part}.text_model."
        tensors |= layer_tensors(f"{prefix}{path}", factors, ("lora_A", "lora_B"))
        if denoiser in _WITHOUT_ALPHA:
            scale = tensors.pop(f"{prefix}{path}.alpha") / factors.rank
            up = factors.up * scale
            tensors[f"{prefix}{path}.lora_B.weight"] = up.to(factors.up.dtype).contiguous()
    return tensors
