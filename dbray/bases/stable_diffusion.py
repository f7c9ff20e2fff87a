"""Stable Diffusion 1.x and 2.x: a UNet over the latents of an autoencoder, conditioned by CLIP.

Reads any diffusers folder of UNet2DConditionModel, AutoencoderKL and CLIPTextModel, with epsilon or
v-prediction. Shape suffixes: N images, B rows, C channels, H height, W width, L tokens, D features.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import (
    EulerAncestralDiscreteScheduler,
)
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CLIPTextModel
from transformers.modeling_layers import GradientCheckpointingLayer

from dbray.bases import Base, Weights, layout, load_tokenizer
from dbray.errors import BaseError
from dbray.spec.sections import Prediction, Recipe, Sampler

# Clipping to [-1, 1] is for pixels and washes latents out. It is the default of ddpm and ddim, and
# a base that was saved with another scheduler (Euler, DPM++, UniPC) says nothing against it.
_SCHEDULERS: dict[Sampler, tuple[Any, dict[str, Any]]] = {
    "ddpm": (DDPMScheduler, {"clip_sample": False}),
    "ddim": (DDIMScheduler, {"clip_sample": False}),
    "euler_ancestral": (EulerAncestralDiscreteScheduler, {}),
    "dpm++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
}
_AUTOENCODED_AT_ONCE = 16
_AUTOENCODED_PIXELS = _AUTOENCODED_AT_ONCE * 512**2
"""At most: 16 images of 768 px would fill a GPU of 24 GB."""


class TrainedParts(nn.Module):
    """The parts that a recipe trains, callable as one module, as engines need it."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel | None) -> None:
        super().__init__()
        self.unet = unet
        if text_encoder is not None:
            self.text_encoder = text_encoder

    def forward(self, latents_BCHW: Tensor, timesteps_B: Tensor, text: Tensor) -> Tensor:
        """Predict from noisy latents. `text` is embeddings, or token ids (int64) if it trains."""
        if "text_encoder" in self._modules:
            text = self.text_encoder(text)[0]
        return self.unet(latents_BCHW, timesteps_B, text, return_dict=False)[0]


class LatentBackbone:
    """A loaded Stable Diffusion pipeline; fulfils `dbray.bases.Backbone`."""

    def __init__(self, base: Base, recipe: Recipe, device: str) -> None:
        self.base = base
        self.device = torch.device(device)
        if self.device.type == "cuda":  # as cuDNN's convolutions do by themselves
            torch.set_float32_matmul_precision("high")
        self._noise_config = layout.config(base.folder, "scheduler")
        self.prediction: Prediction = self._noise_config.get("prediction_type", "epsilon")
        self.alphas_cumprod: Tensor = self.scheduler("ddpm").alphas_cumprod
        self._tokenizer = load_tokenizer(base)
        self._vae = _load_part(AutoencoderKL, base, "vae").to(self.device)
        self._text_encoder = _load_part(CLIPTextModel, base, "text_encoder").to(self.device)
        unet = _load_part(UNet2DConditionModel, base, "unet").to(self.device)
        self.trains_text = recipe.train_text_encoder
        if recipe.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
            if self.trains_text:
                _checkpoint_layers(self._text_encoder)
        self._publish_precision = recipe.publish_precision
        self.trained: nn.Module = TrainedParts(
            unet, self._text_encoder if self.trains_text else None
        )
        self.trained.requires_grad_(True)
        self._unet = unet
        # Inference computes in the recipe's precision too, so that previews show what serves.
        self._autocast = torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=recipe.precision == "bf16"
        )
        self._factor = 2 ** (len(self._vae.config.block_out_channels) - 1)
        self.resolution = recipe.resolution or unet.config.sample_size * self._factor
        side = self.resolution // self._factor
        self.latent_shape = (unet.config.in_channels, side, side)
        self._replaceable: dict[str, nn.Module] = {
            "unet": unet,
            "text_encoder": self._text_encoder,
        }
        self._base_weights: dict[str, dict[str, Tensor]] = {}

    @torch.no_grad()
    def encode(self, images_NHWC: np.ndarray) -> tuple[Tensor, Tensor]:
        """Encode uint8 images to mean and standard deviation of their scaled latents, on CPU."""
        scale = self._vae.config.scaling_factor
        shift = getattr(self._vae.config, "shift_factor", None) or 0.0
        means, deviations = [], []
        at_once = _at_once(*images_NHWC.shape[1:3])
        for start in range(0, len(images_NHWC), at_once):
            pixels = torch.from_numpy(images_NHWC[start : start + at_once])
            pixels_NCHW = pixels.to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
            posterior = self._vae.encode(pixels_NCHW).latent_dist
            means.append(((posterior.mean - shift) * scale).cpu())
            deviations.append((posterior.std * scale).cpu())
        return torch.cat(means), torch.cat(deviations)

    def _tokenize(self, prompts: Sequence[str]) -> Tensor:
        return self._tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self._tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids.to(self.device)

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Embed prompts with the text encoder as it now is, shape (N, L, D)."""
        return self._text_encoder(self._tokenize(prompts))[0]

    def condition(self, prompts: Sequence[str]) -> Tensor:
        """Token ids when the text encoder is trained, else embeddings."""
        return self._tokenize(prompts) if self.trains_text else self.embed(prompts)

    @torch.no_grad()
    def denoise(self, latents_BCHW: Tensor, timesteps_B: Tensor, embeddings_BLD: Tensor) -> Tensor:
        """Predict without gradients; inputs may lie on the CPU, the answer does."""
        with self._autocast:
            prediction = self._unet(
                latents_BCHW.to(self.device),
                timesteps_B.to(self.device),
                embeddings_BLD,
                return_dict=False,
            )[0]
        return prediction.float().cpu()

    @torch.no_grad()
    def decode(self, latents_NCHW: Tensor) -> np.ndarray:
        """Decode scaled latents to uint8 images (N, H, W, 3)."""
        scale = self._vae.config.scaling_factor
        shift = getattr(self._vae.config, "shift_factor", None) or 0.0
        images = []
        height, width = (side * self._factor for side in latents_NCHW.shape[2:])
        for latents in latents_NCHW.split(_at_once(height, width)):
            decoded = self._vae.decode(latents.to(self.device) / scale + shift).sample
            pixels = (decoded.float() / 2 + 0.5).clamp(0, 1) * 255
            images.append(pixels.round().byte().permute(0, 2, 3, 1).cpu().numpy())
        return np.concatenate(images)

    def scheduler(self, name: Sampler) -> Any:
        """Make a fresh diffusers scheduler; schedulers keep state, so they are never shared."""
        scheduler_class, options = _SCHEDULERS[name]
        return scheduler_class.from_config(self._noise_config, **options)

    def set_weights(self, weights: Weights) -> None:
        """Copy weights into the resident parts, in place; parts not named get the base's back.

        Raises:
            BaseError: when a name or shape does not fit; then nothing has been changed.
        """
        for part, tensors in weights.items():
            self._check_fit(part, tensors)
        # Base copies are taken when a part is first replaced: training never needs them.
        for part in weights.keys() - self._base_weights.keys():
            self._base_weights[part] = {
                name: value.to("cpu", copy=True)
                for name, value in self._replaceable[part].state_dict().items()
            }
        for part, base_tensors in self._base_weights.items():
            self._replaceable[part].load_state_dict(weights.get(part, base_tensors))

    def save(self, folder: Path) -> None:
        """Write a diffusers folder: the base's files, with the replaced parts in their place.

        Those are in the precision in which the recipe publishes them. The index names only what is
        there: a base from the hub came without its safety checker.
        """
        replaced = {part: self._replaceable[part] for part in self._base_weights}
        shutil.copytree(
            self.base.folder, folder, ignore=shutil.ignore_patterns(*replaced), dirs_exist_ok=True
        )
        for part, module in replaced.items():
            written = copy.deepcopy(module)
            if self._publish_precision == "fp16":
                written = written.half()
            written.save_pretrained(folder / part)  # pyright: ignore[reportCallIssue]
        index = folder / layout.INDEX_FILE
        index.write_text(json.dumps(_index_of(folder, layout.read_object(index)), indent=2) + "\n")

    def _check_fit(self, part: str, tensors: Mapping[str, Tensor]) -> None:
        if part not in self._replaceable:
            raise BaseError(f"base {self.base.name!r} has no part {part!r} to replace")
        resident = {n: v.shape for n, v in self._replaceable[part].state_dict().items()}
        given = {name: value.shape for name, value in tensors.items()}
        if resident != given:
            differing = sorted({name for name, _ in resident.items() ^ given.items()})
            raise BaseError(f"weights of {part} do not fit base {self.base.name!r}: "
                            f"{len(differing)} tensors differ, e.g. {differing[0]}")  # fmt: skip


def _at_once(height: int, width: int) -> int:
    """How many images of a size the autoencoder takes at once."""
    return max(1, min(_AUTOENCODED_AT_ONCE, _AUTOENCODED_PIXELS // (height * width)))


def _index_of(folder: Path, index: dict[str, Any]) -> dict[str, Any]:
    """Take from an index the parts that a folder does not hold, as diffusers writes such a one."""
    absent = [name for name, value in index.items()
              if isinstance(value, list) and not (folder / name).is_dir()]  # fmt: skip
    left = index | {name: [None, None] for name in absent}
    return left | {"requires_safety_checker": False} if "safety_checker" in absent else left


def _checkpoint_layers(text_encoder: CLIPTextModel) -> None:
    """Let its layers forget their activations in training, and compute them again."""
    text_encoder.activation_checkpointing_enable()
    for layer in text_encoder.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            # Only then does transformers do so. What is inside stays as it is: dropout is off.
            layer.training = True


def _load_part(model_class: Any, base: Base, part: str) -> Any:
    """Load one part as frozen float32. Foreign errors become a BaseError that names the part."""
    try:
        model = model_class.from_pretrained(
            base.folder / part,
            use_safetensors=True,
            local_files_only=True,
            torch_dtype=torch.float32,
        )
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as exc:
        raise BaseError(f"base {base.name!r}: {part} cannot be loaded: {exc}") from exc
    return model.eval().requires_grad_(False)
