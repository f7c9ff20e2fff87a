"""Stable Diffusion 3 and 3.5: a transformer over the texts of two CLIPs and T5.

Source: Esser et al. 2024 (arXiv 2403.03206).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dbray.bases.families.family import Tensors, recipes
from dbray.bases.families.flow_family import FlowFamily, token_ids

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dbray.bases.layout import Layout
    from dbray.spec.recipe import Recipe

_T5_LENGTH = 256
"""The transformer reads padding too, so the length is part of the condition."""


class StableDiffusion3(FlowFamily):
    """See the module."""

    name = "Stable Diffusion 3 or 3.5"
    models = {  # noqa: RUF012 - never changed
        "transformer": "diffusers.SD3Transformer2DModel",
        "vae": "diffusers.AutoencoderKL",
        "text_encoder": "transformers.CLIPTextModelWithProjection",
        "text_encoder_2": "transformers.CLIPTextModelWithProjection",
        "text_encoder_3": "transformers.T5EncoderModel",
    }
    model_types = {  # noqa: RUF012 - as above
        "text_encoder": ("clip_text_model",),
        "text_encoder_2": ("clip_text_model",),
        "text_encoder_3": ("t5",),
    }
    tokenizers = {  # noqa: RUF012 - as above
        "tokenizer": "CLIPTokenizer",
        "tokenizer_2": "CLIPTokenizer",
        "tokenizer_3": "T5TokenizerFast",
    }
    reader = "tokenizer_3"
    text_encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")
    trained_encoders = ("text_encoder", "text_encoder_2")
    channels_per_latent = 1
    density = "logit_normal"
    weighting = "image"
    text_length = _T5_LENGTH + 77
    targets = {  # noqa: RUF012 - as above
        "attention": (
            "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
            "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
        ),
        "feed_forward": (
            "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2",
        ),
    }  # fmt: skip
    default_targets = ("attention",)
    recipes = recipes(
        lora={"learning_rate": 4e-4, "steps": 500}, full={"learning_rate": 1e-4, "steps": 500}
    )
    defaults = {  # noqa: RUF012 - those of the pipeline
        "prior": {"sampler": "euler", "steps": 28, "guidance": 7.0},
        "previews": {"sampler": "euler", "steps": 28, "guidance": 7.0},
    }

    def check(self, layout: Layout) -> None:
        """See Family."""
        super().check(layout)
        if layout.config("scheduler").get("use_dynamic_shifting"):
            raise self.refused("its scheduler sets use_dynamic_shifting")

    def resolution(self, layout: Layout) -> int:
        """Return the transformer's sample size, in pixels."""
        return layout.config(self.denoiser)["sample_size"] * self.factor(layout.config("vae"))

    def unfit(self, layout: Layout, recipe: Recipe) -> Iterator[tuple[str, str]]:
        """See Family. The table of positions limits the resolution."""
        yield from super().unfit(layout, recipe)
        config, factor = layout.config(self.denoiser), self.factor(layout.config("vae"))
        most = config["pos_embed_max_size"] * config["patch_size"] * factor
        if recipe.resolution is not None and recipe.resolution > most:
            yield f"resolution {recipe.resolution} is over the base's {most}", f"set it to {most}"
        elif (
            recipe.crop == "bucket"
            and 2**0.5 * (recipe.resolution or self.resolution(layout)) > most
        ):
            what = f"crop: bucket has longer sides than the base's table of positions, {most}"
            yield what, "set crop to centre, or lower resolution"

    def num_targets(self, config: Mapping[str, Any], group: str) -> int | None:
        """The last block has no output for the text."""
        blocks = config["num_layers"]
        return {"attention": 8 * blocks - 1, "feed_forward": 4 * blocks - 2}.get(group)

    def set_timesteps(self, scheduler: Any, steps: int, shape: tuple[int, int, int]) -> None:
        """Even steps over the table, which is already shifted, shifted again."""
        scheduler.set_timesteps(steps)

    def tokenize(self, tokenizers: Mapping[str, Any], prompts: Sequence[str]) -> Tensors:
        """Return token ids for both CLIPs, at the length of the first, and for T5."""
        one, two, t5 = (tokenizers[name] for name in self.tokenizers)
        length = one.model_max_length
        return {
            "clip_ids": token_ids(one, prompts, length)["ids"],
            "clip_2_ids": token_ids(two, prompts, length)["ids"],
            "t5_ids": token_ids(t5, prompts, _T5_LENGTH)["ids"],
        }

    def max_tokens(self, reader: Any) -> int:
        """Return T5's limit; the CLIPs read only the beginning."""
        return _T5_LENGTH

    def embed(self, models: Mapping[str, Any], tokens: Tensors) -> Tensors:
        """Return the CLIPs side by side, padded with zeros to T5's width, then T5; both pooled."""
        import torch
        from torch.nn.functional import pad

        one = models["text_encoder"](tokens["clip_ids"], output_hidden_states=True)
        two = models["text_encoder_2"](tokens["clip_2_ids"], output_hidden_states=True)
        t5 = models["text_encoder_3"](tokens["t5_ids"])[0]
        clips = torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=-1)
        clips = pad(clips, (0, t5.shape[-1] - clips.shape[-1]))
        return {
            "text": torch.cat([clips, t5], dim=1),
            "pooled": torch.cat([one.text_embeds, two.text_embeds], dim=-1),
        }

    def latent_shape(self, vae: Mapping[str, Any], size: tuple[int, int]) -> tuple[int, int, int]:
        """See Family."""
        factor = self.factor(vae)
        return self.latent_channels(vae), size[1] // factor, size[0] // factor

    def predict(
        self, denoiser: nn.Module, latents_BCHW: Tensor, timesteps_B: Tensor, condition: Tensors
    ) -> Tensor:
        """Return the transformer's output: noise minus image."""
        return denoiser(
            hidden_states=latents_BCHW,
            timestep=timesteps_B,
            encoder_hidden_states=condition["text"],
            pooled_projections=condition["pooled"],
            return_dict=False,
        )[0]


FAMILY = StableDiffusion3()
