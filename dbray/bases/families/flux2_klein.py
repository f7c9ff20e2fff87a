"""FLUX.2 [klein] base: one transformer over three layers of Qwen3 and patches of latents.

The autoencoder's latents are grouped into patches and normalised by its own statistics, so latents
have four times its channels and half its height and width here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dbray.bases.families.family import Tensors, recipes
from dbray.bases.families.flow_family import FlowFamily, chat, sigmas_of, token_ids
from dbray.bases.families.packing import PATCH, positions

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dbray.bases.layout import Layout

_LAYERS = (9, 18, 27)
"""Indices of the hidden states to read; 0 is the embedding."""


class Flux2Klein(FlowFamily):
    """See the module."""

    name = "FLUX.2 [klein] base"
    models = {  # noqa: RUF012 - never changed
        "transformer": "diffusers.Flux2Transformer2DModel",
        "vae": "diffusers.AutoencoderKLFlux2",
        "text_encoder": "transformers.Qwen3Model",
    }
    model_types = {"text_encoder": ("qwen3",)}  # noqa: RUF012 - as above
    tokenizers = {"tokenizer": "Qwen2Tokenizer"}  # noqa: RUF012 - as above
    text_encoders = ("text_encoder",)
    trained_encoders = ()
    targets = {  # noqa: RUF012 - as above
        # Single blocks have two fused layers; the second is not in a list as in other blocks.
        "attention": ("to_q", "to_k", "to_v", "to_out.0", "to_qkv_mlp_proj", "attn.to_out"),
    }
    default_targets = ("attention",)
    recipes = recipes(lora={"learning_rate": 1e-4, "warmup_steps": 100, "steps": 500})
    defaults = {  # noqa: RUF012 - those of the pipeline
        "prior": {"sampler": "euler", "guidance": 4.0},
        "previews": {"sampler": "euler", "guidance": 4.0},
    }

    def check(self, layout: Layout) -> None:
        """See Family."""
        super().check(layout)
        wanted = layout.config(self.denoiser).get("joint_attention_dim")
        width = layout.config("text_encoder").get("hidden_size", 0)
        if wanted != len(_LAYERS) * width:
            raise self.refused(f"its transformer reads text of width {wanted}, and three layers "
                               f"of its text encoder have {len(_LAYERS) * width}")  # fmt: skip

    def distilled(self, layout: Layout) -> str | None:
        """See Family."""
        if layout.index.get("is_distilled"):
            return ("its model_index.json sets is_distilled; the base to train has 'base' in its "
                    "name")  # fmt: skip
        return super().distilled(layout)

    def num_targets(self, config: Mapping[str, Any], group: str) -> int | None:
        """Four layers in each double block, two in each single one."""
        counts = {"attention": 4 * config["num_layers"] + 2 * config["num_single_layers"]}
        return counts.get(group)

    def num_tokens(self, shape: tuple[int, int, int]) -> int:
        """One per latent, which is already a patch."""
        return shape[1] * shape[2]

    def shift(self, config: Mapping[str, Any], num_tokens: int, steps: int) -> float:
        """Return mu by diffusers' own fit, which also depends on the number of steps."""
        from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

        return compute_empirical_mu(num_tokens, steps)

    def tokenize(self, tokenizers: Mapping[str, Any], prompts: Sequence[str]) -> Tensors:
        """Return token ids of the chat, and the mask of non-padding tokens."""
        tokenizer = tokenizers["tokenizer"]
        return token_ids(tokenizer, chat(tokenizer, prompts, thinking=False), self.text_length)

    def framed(self, reader: Any, prompt: str) -> str:
        """Return the chat."""
        return chat(reader, [prompt], thinking=False)[0]

    def embed(self, models: Mapping[str, Any], tokens: Tensors) -> Tensors:
        """Return three layers side by side. The transformer reads the padding too."""
        import torch

        found = models["text_encoder"](
            input_ids=tokens["ids"], attention_mask=tokens["mask"], output_hidden_states=True,
            use_cache=False,
        )  # fmt: skip
        return {"text": torch.cat([found.hidden_states[layer] for layer in _LAYERS], dim=-1)}

    def latent_shape(self, vae: Mapping[str, Any], size: tuple[int, int]) -> tuple[int, int, int]:
        """See Family."""
        channels, height, width = super().latent_shape(vae, size)
        return channels * PATCH**2, height // PATCH, width // PATCH

    def encode(self, models: Mapping[str, Any], pixels_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mode of the posterior, in patches, normalised."""
        from torch.nn.functional import pixel_unshuffle

        vae = models["vae"]
        mean, deviation = _statistics(vae)
        patches = pixel_unshuffle(vae.encode(pixels_NCHW).latent_dist.mode(), PATCH)
        return (patches - mean) / deviation, patches * 0

    def decode(self, models: Mapping[str, Any], latents_NCHW: Tensor) -> Tensor:
        """See Family."""
        from torch.nn.functional import pixel_shuffle

        mean, deviation = _statistics(models["vae"])
        return models["vae"].decode(pixel_shuffle(latents_NCHW * deviation + mean, PATCH)).sample

    def predict(
        self, denoiser: nn.Module, latents_BCHW: Tensor, timesteps_B: Tensor, condition: Tensors
    ) -> Tensor:
        """Return the transformer's output: noise minus image."""
        import torch

        text = condition["text"]
        num_rows, length = text.shape[:2]
        ids = torch.zeros(num_rows, length, 4, dtype=torch.int64, device=text.device)
        ids[..., 3] = torch.arange(length, device=text.device)
        height, width = latents_BCHW.shape[2:]
        tokens = denoiser(
            hidden_states=latents_BCHW.flatten(2).transpose(1, 2),
            timestep=sigmas_of(timesteps_B),
            guidance=None,
            encoder_hidden_states=text,
            txt_ids=ids,
            img_ids=positions(height, width, 4, ids).expand(num_rows, -1, -1),
            return_dict=False,
        )[0]
        return tokens.transpose(1, 2).unflatten(2, (height, width))


def _statistics(vae: Any) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of each channel of the patches, from the autoencoder's weights."""
    variance = vae.bn.running_var + vae.config.batch_norm_eps
    return vae.bn.running_mean.view(1, -1, 1, 1), variance.sqrt().view(1, -1, 1, 1)


FAMILY = Flux2Klein()
