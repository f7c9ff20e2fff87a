"""A loaded base of any family: the models in memory, and the code common to all families.

Owns loading, precision, batches of the autoencoder, and the network for training. The base's Family
provides what differs. Shape suffixes: N images, B rows, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from dbray.bases import Base, Compute, clip_layout, load_tokenizer
from dbray.bases.condition import Condition
from dbray.bases.families.family import Family
from dbray.bases.families.super_resolution import SuperResolution
from dbray.bases.low_images import Noising
from dbray.bases.placement import on_device
from dbray.bases.resident import STAGE_PREFIX, Resident
from dbray.errors import BaseError
from dbray.spec.sections import Sampler

_AUTOENCODED_AT_ONCE = 16
_AUTOENCODED_PIXELS = _AUTOENCODED_AT_ONCE * 512**2
"""Pixels per batch: 16 images of 768 px would fill a GPU of 24 GB."""


class Network(nn.Module):
    """The module of a training step: the denoiser, and the trained text encoders."""

    def __init__(self, family: Family, models: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._family = family
        for part, model in models.items():
            self.add_module(part, model)
        self._embeds = any(part in models for part in family.text_encoders)

    def forward(
        self, latents_BCHW: Tensor, timesteps_B: Tensor, condition: Mapping[str, Tensor]
    ) -> Tensor:
        """Predict from noisy latents; `condition` has token ids if text encoders are trained."""
        if self._embeds:
            condition = self._family.embed(self._modules, condition)
        denoiser = self.get_submodule(self._family.denoiser)
        prediction = self._family.predict(denoiser, latents_BCHW, timesteps_B, condition)
        return self._family.targeted(prediction)


class LoadedBackbone:
    """A base in memory; implements `dbray.bases.Backbone`."""

    def __init__(self, base: Base, compute: Compute) -> None:
        self.base = base
        self.device = torch.device(compute.device)
        if self.device.type == "cuda":  # as cuDNN's convolutions do by default
            torch.set_float32_matmul_precision("high")
        self._family = family = base.family
        self._noise_config = base.layout.config("scheduler")
        self._latent_config = base.layout.autoencoder
        self.schedule = family.schedule(self._noise_config)
        self.tokenizers: Mapping[str, Any] = {
            name: load_tokenizer(base, name) for name in family.tokenizers
        }
        on_gpu_in_bf16 = self.device.type == "cuda" and compute.precision == "bf16"
        self._half = on_gpu_in_bf16 if compute.half is None else compute.half
        self._visits = compute.visits
        self.models: dict[str, nn.Module] = {part: self._load(part) for part in family.models}
        self._checkpoints = compute.gradient_checkpointing
        # Sampling also uses the precision of training, so that previews match serving.
        self._autocast = torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=compute.precision == "bf16"
        )
        # GPUs round the inputs of float32 products to 10 bits.
        self.is_exact = self.device.type == "cpu" and compute.precision == "fp32"
        self.resolution = compute.resolution or base.resolution
        self._following: LoadedBackbone | None = None
        if compute.then is not None and base.super_resolution is not None:
            self._following = LoadedBackbone(base.super_resolution, compute.then)
        self._resident: Resident | None = None

    def _load(self, part: str) -> nn.Module:
        """Load one model, to where it stays."""
        # The autoencoder is small, and that of SDXL overflows in float16.
        keeps_type = self._half and part in (self._family.denoiser, *self._family.text_encoders)
        in_bf16 = keeps_type and self.base.layout.type(part) == "BF16"
        model = _load_model(self.base, part, torch.bfloat16 if in_bf16 else torch.float32)
        return model if self._visits else model.to(self.device)

    @contextmanager
    def _at_work(self, *parts: str | None) -> Iterator[None]:
        """Have models on the device."""
        models = [self.models[part] for part in parts if part] if self._visits else []
        with on_device(models, self.device):
            yield

    @property
    def super_resolution(self) -> LoadedBackbone | None:
        """See Backbone."""
        return self._following

    @property
    def resident(self) -> Resident:
        """See Backbone."""
        if self._resident is None:
            self._resident = Resident(self._replaceable())
        return self._resident

    def _replaceable(self) -> dict[str, nn.Module]:
        """The models whose weights may be replaced; those of the second stage with its prefix."""
        found = self._own_replaceable()
        if self._following is not None:
            following = self._following._own_replaceable()
            found |= {f"{STAGE_PREFIX}{part}": model for part, model in following.items()}
        return found

    def _own_replaceable(self) -> dict[str, nn.Module]:
        parts = (self._family.denoiser, *self._family.text_encoders)
        return {part: self.models[part] for part in parts}

    def network(self, parts: Sequence[str]) -> Network:
        """See Backbone."""
        if self._checkpoints:
            for part in parts:
                _recompute_activations(self.models[part])
        return Network(self._family, {part: self.models[part] for part in parts})

    def latent_shape(self, size: tuple[int, int] | None = None) -> tuple[int, int, int]:
        """See Backbone."""
        side = self.resolution
        return self._family.latent_shape(self._latent_config, size or (side, side))

    @torch.no_grad()
    def encode(self, images_NHWC: np.ndarray) -> tuple[Tensor, Tensor]:
        """Encode uint8 images to mean and standard deviation of their scaled latents, on CPU."""
        means, deviations = [], []
        at_once = _at_once(*images_NHWC.shape[1:3])
        with self._at_work(self._family.autoencoder):
            for start in range(0, len(images_NHWC), at_once):
                pixels = torch.from_numpy(images_NHWC[start : start + at_once])
                pixels_NCHW = pixels.to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
                mean, deviation = self._family.encode(self.models, pixels_NCHW)
                means.append(mean.cpu())
                deviations.append(deviation.cpu())
        return torch.cat(means), torch.cat(deviations)

    def tokenize(self, prompts: Sequence[str]) -> Condition:
        """See Backbone."""
        tokens = self._family.tokenize(self.tokenizers, prompts)
        extra = self._family.extra_inputs(self.models, len(prompts))
        return Condition({**tokens, **extra}).to(self.device)

    @torch.no_grad()
    def condition(self, prompts: Sequence[str]) -> Condition:
        """See Backbone."""
        tokens = self.tokenize(prompts).tensors
        in_half = torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._half)
        with self._at_work(*self._family.text_encoders), in_half:
            embedded = self._family.embed(self.models, tokens)
        # Positions and guidance are made in the type of the text, and need float32.
        return Condition({name: _widened(tensor) for name, tensor in embedded.items()})

    @torch.no_grad()
    def denoise(self, latents_BCHW: Tensor, timesteps_B: Tensor, condition: Condition) -> Tensor:
        """Predict without gradients; inputs may be on the CPU, the result is."""
        with self._autocast:
            prediction = self._family.predict(
                self.models[self._family.denoiser],
                latents_BCHW.to(self.device),
                timesteps_B.to(self.device),
                condition.tensors,
            )
        return prediction.float().cpu()

    @torch.no_grad()
    def decode(self, latents_NCHW: Tensor) -> np.ndarray:
        """Decode scaled latents to uint8 images (N, H, W, 3)."""
        images = []
        factor = self.resolution // self.latent_shape()[1]
        height, width = (factor * side for side in latents_NCHW.shape[2:])
        with self._at_work(self._family.autoencoder):
            for latents in latents_NCHW.split(_at_once(height, width)):
                decoded = self._family.decode(self.models, latents.to(self.device))
                pixels = (decoded.float() / 2 + 0.5).clamp(0, 1) * 255
                images.append(pixels.round().byte().permute(0, 2, 3, 1).cpu().numpy())
        return np.concatenate(images)

    def low_images(self, images_NHWC: np.ndarray, size: tuple[int, int] | None = None) -> Tensor:
        """See Backbone."""
        side = self.resolution
        low_NCHW = torch.from_numpy(images_NHWC).permute(0, 3, 1, 2).float() / 127.5 - 1
        return self._upscaling.low_input(low_NCHW, size or (side, side))

    def noising(self, level: int) -> Noising:
        """See Backbone."""
        return Noising.of(self.base.layout.config(self._upscaling.noising), level)

    @property
    def _upscaling(self) -> SuperResolution:
        """Its family, which has to be one of super-resolution networks."""
        assert isinstance(self._family, SuperResolution)
        return self._family

    def scheduler(self, name: Sampler, steps: int, size: tuple[int, int] | None = None) -> Any:
        """See Backbone."""
        self._family.check_sampler(name)
        scheduler = self._family.scheduler(name, self._noise_config)
        return self._family.prepare(scheduler, steps, self.latent_shape(size))


def _at_once(height: int, width: int) -> int:
    """Return how many images of a size the autoencoder processes at once."""
    return max(1, min(_AUTOENCODED_AT_ONCE, _AUTOENCODED_PIXELS // (height * width)))


def _recompute_activations(model: Any) -> None:
    """Make a model drop its activations in training, and compute them again."""
    if hasattr(model, "enable_gradient_checkpointing"):
        model.enable_gradient_checkpointing()
        return
    model.activation_checkpointing_enable()
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            # transformers does so only in training. Its submodules stay in eval mode: no dropout.
            layer.training = True


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _load_model(base: Base, part: str, dtype: torch.dtype) -> Any:
    """Load one model, frozen. Foreign errors become a BaseError that names the part."""
    import diffusers
    import transformers

    library, _, class_name = base.family.models[part].partition(".")
    model_class = getattr(
        {"diffusers": diffusers, "transformers": transformers}[library], class_name
    )
    options = {"use_safetensors": True, "local_files_only": True, "torch_dtype": dtype}
    try:
        model, info = model_class.from_pretrained(
            base.folder / part, output_loading_info=True, **options
        )
        filled = sorted(str(name) for name in info["missing_keys"])
        if filled and library == "transformers":
            model = _load_unprefixed(model_class, base, part, options)
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as exc:
        raise BaseError(f"base {base.name!r}: {part} cannot be loaded: {exc}") from exc
    return model.eval().requires_grad_(False)


def _load_unprefixed(model_class: Any, base: Base, part: str, options: dict[str, Any]) -> Any:
    """Load a text encoder from a file with another prefix of names than transformers expects.

    Raises:
        ValueError: tensors are missing, which would be filled with random numbers.
    """
    tensors = {}
    for file in base.layout.weight_files(part):
        tensors |= load_file(file)
    prefix = clip_layout.prefix_of(tensors)
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    config = model_class.config_class.from_pretrained(base.folder / part, local_files_only=True)
    model, info = model_class.from_pretrained(
        None, config=config, state_dict=own, output_loading_info=True, **options
    )
    if missing := sorted(str(name) for name in info["missing_keys"]):
        raise ValueError(f"it lacks {len(missing)} tensors, {missing[0]} first")
    return model
