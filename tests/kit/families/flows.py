"""Families trained by flow matching, with diffusers' pipelines and plain arithmetic.

This code is written from the pipelines, part by part, and shares nothing with dbray.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """How to call diffusers' pipeline of a family.

    `encode` returns the pipeline's condition of one prompt, and `predict` the prediction for one
    row; `latents` are the mean and deviation of images. `guidance` is dbray's value and `options`
    are the pipeline's for the same image. `real` is the configuration of a real transformer, and
    its number of targets.
    """

    encode: Callable[[Any, str], dict[str, Tensor]]
    predict: Callable[[Any, Tensor, float, dict[str, Tensor]], Tensor]
    latents: Callable[[Any, Tensor], tuple[Tensor, Tensor]]
    num_targets: Callable[[Any], int]
    real: dict[str, int]
    guidance: float
    options: dict[str, Any]
    position: Callable[[torch.Generator], Tensor] = lambda random: torch.rand((), generator=random)
    weight: Callable[[float], float] = lambda sigma: 1.0

    def table(self, config: Any, shift: float | None = None) -> list[float]:
        """Return the noise levels of training, with the base's static shift or another."""
        table = np.arange(1000, 0, -1) / 1000
        own = 1.0 if config.use_dynamic_shifting else config.shift
        shift = own if shift is None else shift
        return (shift * table / (1 + (shift - 1) * table)).tolist()


def encode_flux(pipeline, prompt):
    text, pooled, _ = pipeline.encode_prompt(prompt)
    return {"text": text[0], "pooled": pooled[0]}


def encode_sd3(pipeline, prompt):
    text, _, pooled, _ = pipeline.encode_prompt(prompt, None, None, device="cpu")
    return {"text": text[0], "pooled": pooled[0]}


def encode_text(pipeline, prompt):
    return {"text": pipeline.encode_prompt(prompt)[0][0]}


def encode_z_image(pipeline, prompt):
    return {"text": pipeline.encode_prompt([prompt])[0][0]}


def times(sigma):
    return torch.tensor([sigma], dtype=torch.float32)


def packed(predict):
    """Call `predict` with tokens of patches, and unpack its result, as the pipelines do."""

    def predict_unpacked(pipeline, latents, sigma, condition):
        tokens = pipeline._pack_latents(latents, *latents.shape)
        rows, columns = (side // 2 for side in latents.shape[2:])
        answer = predict(pipeline, tokens, (rows, columns), times(sigma), condition)
        patches = answer.view(1, rows, columns, -1, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return patches.reshape(latents.shape)

    return predict_unpacked


@packed
def predict_flux(pipeline, tokens, size, time, condition):
    return pipeline.transformer(
        hidden_states=tokens, timestep=time, guidance=torch.tensor([1.0]),
        pooled_projections=condition["pooled"][None],
        encoder_hidden_states=condition["text"][None],
        txt_ids=torch.zeros(len(condition["text"]), 3),
        img_ids=pipeline._prepare_latent_image_ids(1, *size, "cpu", torch.float32),
    ).sample  # fmt: skip


@packed
def predict_qwen_image(pipeline, tokens, size, time, condition):
    return pipeline.transformer(
        hidden_states=tokens, timestep=time, guidance=None,
        encoder_hidden_states=condition["text"][None], encoder_hidden_states_mask=None,
        img_shapes=[[(1, *size)]],
    ).sample  # fmt: skip


def predict_sd3(pipeline, latents, sigma, condition):
    return pipeline.transformer(
        hidden_states=latents, timestep=1000 * times(sigma),
        encoder_hidden_states=condition["text"][None],
        pooled_projections=condition["pooled"][None],
    ).sample  # fmt: skip


def predict_z_image(pipeline, latents, sigma, condition):
    time = (1000 - 1000 * times(sigma)) / 1000
    [answer] = pipeline.transformer([latents[0].unsqueeze(1)], time, [condition["text"]]).sample
    return -answer.squeeze(1)[None]


def predict_flux2_klein(pipeline, latents, sigma, condition):
    text = condition["text"][None]
    answer = pipeline.transformer(
        hidden_states=pipeline._pack_latents(latents), timestep=times(sigma), guidance=None,
        encoder_hidden_states=text, txt_ids=pipeline._prepare_text_ids(text),
        img_ids=pipeline._prepare_latent_ids(latents),
    ).sample  # fmt: skip
    return answer.permute(0, 2, 1).reshape(latents.shape)


def posterior(pipeline, images):
    """Encode uint8 images with the autoencoder."""
    pixels = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    video = type(pipeline.vae).__name__ == "AutoencoderKLQwenImage"
    with torch.no_grad():
        return pipeline.vae.encode(pixels.unsqueeze(2) if video else pixels).latent_dist


def latents_kl(pipeline, images):
    config, found = pipeline.vae.config, posterior(pipeline, images)
    shift, scale = config.shift_factor, config.scaling_factor
    return (found.mean - shift) * scale, found.std * scale


def latents_z_image(pipeline, images):
    mean, deviation = latents_kl(pipeline, images)
    return mean, torch.zeros_like(deviation)


def latents_flux2_klein(pipeline, images):
    patches = pipeline._patchify_latents(posterior(pipeline, images).mode())
    normal = pipeline.vae.bn.eval()
    normal.eps = pipeline.vae.config.batch_norm_eps
    with torch.no_grad():
        mean = normal(patches)
    return mean, torch.zeros_like(mean)


def latents_qwen_image(pipeline, images):
    config, found = pipeline.vae.config, posterior(pipeline, images)
    mean, deviation = (
        torch.tensor(values).view(1, -1, 1, 1)
        for values in (config.latents_mean, config.latents_std)
    )
    return (found.mean[:, :, 0] - mean) / deviation, found.std[:, :, 0] / deviation


CASES = {
    "flux": Case(
        encode_flux, predict_flux, latents_kl,
        lambda config: 12 * config["num_layers"] + 3 * config["num_single_layers"],
        {"num_layers": 19, "num_single_layers": 38, "targets": 342},
        3.5, {"guidance_scale": 3.5},
    ),
    "z_image": Case(
        encode_z_image, predict_z_image, latents_z_image,
        lambda config: 4 * (config["n_layers"] + 2 * config["n_refiner_layers"]),
        {"n_layers": 30, "n_refiner_layers": 2, "targets": 136},
        6.0, {"guidance_scale": 5.0},
    ),
    "sd3": Case(
        encode_sd3, predict_sd3, latents_kl,
        lambda config: 8 * config["num_layers"] - 1,
        {"num_layers": 38, "targets": 303},
        7.0, {"guidance_scale": 7.0},
        lambda random: torch.randn((), generator=random).sigmoid(),
        lambda sigma: sigma**2,
    ),
    "flux2_klein": Case(
        encode_text, predict_flux2_klein, latents_flux2_klein,
        lambda config: 4 * config["num_layers"] + 2 * config["num_single_layers"],
        {"num_layers": 5, "num_single_layers": 20, "targets": 60},
        4.0, {"guidance_scale": 4.0},
    ),
    "qwen_image": Case(
        encode_text, predict_qwen_image, latents_qwen_image,
        lambda config: 4 * config["num_layers"],
        {"num_layers": 60, "targets": 240},
        4.0, {"true_cfg_scale": 4.0},
    ),
}  # fmt: skip
