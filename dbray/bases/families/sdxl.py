"""Stable Diffusion XL: a UNet conditioned by two CLIP texts, a pooled text and the image's size.

Source: Podell et al. 2023 (arXiv 2307.01952). The size is computed from the latents, so that
training and generation cannot differ. The paper's original size and target size are both the
image's, and the crop is (0, 0).
Shape suffixes: N prompts, B rows, L tokens, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dbray.bases.families.family import Tensors, latent_factor, recipes
from dbray.bases.families.stable_diffusion import StableDiffusion, token_ids

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dbray.bases.layout import Layout

_ZEROS = "force_zeros_for_empty_prompt"
_NUM_SIZES = 6
"""Heights and widths, and the corner of the crop."""


class StableDiffusionXL(StableDiffusion):
    """See the module."""

    name = "Stable Diffusion XL"
    models = {  # noqa: RUF012 - never changed
        "unet": "diffusers.UNet2DConditionModel",
        "vae": "diffusers.AutoencoderKL",
        "text_encoder": "transformers.CLIPTextModel",
        "text_encoder_2": "transformers.CLIPTextModelWithProjection",
    }
    tokenizers = {  # noqa: RUF012 - as above
        "tokenizer": "CLIPTokenizer",
        "tokenizer_2": "CLIPTokenizer",
    }
    text_encoders = ("text_encoder", "text_encoder_2")
    recipes = recipes(lora={"learning_rate": 1e-4, "steps": 500})
    default_targets = ("attention",)
    inputs = "latents, texts and sizes"
    other_inputs = (
        "class_embed_type",
        "num_class_embeds",
        "encoder_hid_dim",
        "encoder_hid_dim_type",
        "time_cond_proj_dim",  # in bases distilled as latent consistency models
    )
    index_keys = (_ZEROS,)

    def check(self, layout: Layout) -> None:
        """Reject refiners, inpainting, and other kinds of latents or noise."""
        super().check(layout)
        vae = layout.config("vae")
        if vae.get("latents_mean") is not None or vae.get("latents_std") is not None:
            raise self.refused(
                "its latents are normalised by channel, which belongs to another schedule"
            )
        if "EDM" in layout.config("scheduler").get("_class_name", ""):
            raise self.refused("its noise schedule is that of EDM")
        self._check_sizes(layout)
        self._check_projection(layout)

    def _check_sizes(self, layout: Layout) -> None:
        """Reject UNets that take other sizes or another pooled text, as the refiner's does."""
        unet = layout.config("unet")
        sizes = _NUM_SIZES * (unet.get("addition_time_embed_dim") or 0)
        pooled = layout.config("text_encoder_2").get("projection_dim", 0)
        wanted = {
            "addition_embed_type": "text_time",
            "projection_class_embeddings_input_dim": sizes + pooled,
        }
        for key, value in wanted.items():
            if unet.get(key) != value:
                raise self.refused(f"{key} of its UNet is {unet.get(key)!r}, not {value!r}")

    def _check_projection(self, layout: Layout) -> None:
        """Reject a file without it: transformers would fill it at random, and only warn."""
        second = layout.config("text_encoder_2")
        wanted = (second.get("projection_dim"), second.get("hidden_size"))
        found = layout.shapes("text_encoder_2").get("text_projection.weight")
        if found != wanted:
            raise self.refused(f"text_projection of its text_encoder_2 is {found}, not {wanted}")

    def tokenize(self, tokenizers: Mapping[str, Any], prompts: Sequence[str]) -> Tensors:
        """Return token ids of both tokenizers, each with its own padding."""
        return {
            "token_ids": token_ids(tokenizers["tokenizer"], prompts),
            "token_ids_2": token_ids(tokenizers["tokenizer_2"], prompts),
        }

    def extra_inputs(self, models: Mapping[str, Any], num: int) -> Tensors:
        """Return the pixels per latent, which convert the size of latents to that of the image."""
        import torch

        return {"pixels_per_latent": torch.full((num,), float(latent_factor(models["vae"].config)))}

    def embed(self, models: Mapping[str, Any], tokens: Tensors) -> Tensors:
        """Return both second-last hidden states side by side, and the second's pooled text."""
        import torch

        first = models["text_encoder"](tokens["token_ids"], output_hidden_states=True)
        second = models["text_encoder_2"](tokens["token_ids_2"], output_hidden_states=True)
        return {
            "text": torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1),
            "pooled": second.text_embeds,
            "pixels_per_latent": tokens["pixels_per_latent"],
        }

    def without_prompt(self, condition: Tensors, layout: Layout) -> Tensors:
        """Return zeros, unless the base's index sets the empty prompt to be read."""
        if not layout.index.get(_ZEROS, True):
            return condition
        zeros = {name: condition[name] * 0 for name in ("text", "pooled")}
        return {**condition, **zeros}

    def predict(
        self, denoiser: nn.Module, latents_BCHW: Tensor, timesteps_B: Tensor, condition: Tensors
    ) -> Tensor:
        """Return the UNet's output."""
        import torch

        factor_B = condition["pixels_per_latent"]
        height_B, width_B = (factor_B * side for side in latents_BCHW.shape[2:])
        corner_B = torch.zeros_like(factor_B)
        sizes = [height_B, width_B, corner_B, corner_B, height_B, width_B]
        return denoiser(
            latents_BCHW,
            timesteps_B,
            encoder_hidden_states=condition["text"],
            added_cond_kwargs={
                "text_embeds": condition["pooled"],
                "time_ids": torch.stack(sizes, dim=1),
            },
            return_dict=False,
        )[0]


FAMILY = StableDiffusionXL()
