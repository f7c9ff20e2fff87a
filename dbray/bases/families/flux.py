"""FLUX.1 [dev]: one transformer over CLIP's pooled text, T5's tokens and patches of latents.

The guidance scale is an input of the transformer: it was distilled from guided predictions.
Training uses 1, as diffusers' own recipe does, and sampling uses the requested scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dbray.bases.families.family import Tensors, recipes
from dbray.bases.families.flow_family import FlowFamily, sigmas_of, token_ids
from dbray.bases.families.packing import PATCH, pack, positions, unpack

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dbray.bases.layout import Layout


class Flux(FlowFamily):
    """See the module."""

    name = "FLUX.1 [dev]"
    models = {  # noqa: RUF012 - never changed
        "transformer": "diffusers.FluxTransformer2DModel",
        "vae": "diffusers.AutoencoderKL",
        "text_encoder": "transformers.CLIPTextModel",
        "text_encoder_2": "transformers.T5EncoderModel",
    }
    model_types = {"text_encoder": ("clip_text_model",), "text_encoder_2": ("t5",)}  # noqa: RUF012
    tokenizers = {"tokenizer": "CLIPTokenizer", "tokenizer_2": "T5TokenizerFast"}  # noqa: RUF012
    reader = "tokenizer_2"
    text_encoders = ("text_encoder", "text_encoder_2")
    trained_encoders = ("text_encoder",)
    targets = {  # noqa: RUF012 - as above
        "attention": (
            "to_q", "to_k", "to_v", "to_out.0",
            "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
        ),
        "feed_forward": (
            "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2",
        ),
    }  # fmt: skip
    # The scripts use Prodigy, except for Kontext, whose rate for AdamW this is.
    recipes = recipes(lora={"learning_rate": 1e-4, "steps": 500})
    defaults = {  # noqa: RUF012 - those of the pipeline
        "prior": {"sampler": "euler", "steps": 28, "guidance": 3.5},
        "previews": {"sampler": "euler", "steps": 28, "guidance": 3.5},
    }

    def distilled(self, layout: Layout) -> str | None:
        """See Family. The transformers of all others take the guidance scale."""
        if not layout.config(self.denoiser).get("guidance_embeds"):
            return ("its transformer does not take the guidance scale, like that of FLUX.1 "
                    "[schnell], which is distilled to 4 steps")  # fmt: skip
        return super().distilled(layout)

    def num_targets(self, config: Mapping[str, Any], group: str) -> int | None:
        """Single blocks have no separate projections for the text, and another feed-forward."""
        blocks, single = config["num_layers"], config["num_single_layers"]
        return {"attention": 8 * blocks + 3 * single, "feed_forward": 4 * blocks}.get(group)

    def tokenize(self, tokenizers: Mapping[str, Any], prompts: Sequence[str]) -> Tensors:
        """Token ids for CLIP and for T5."""
        clip, t5 = tokenizers["tokenizer"], tokenizers["tokenizer_2"]
        return {
            "clip_ids": token_ids(clip, prompts, clip.model_max_length)["ids"],
            "t5_ids": token_ids(t5, prompts, self.text_length)["ids"],
        }

    def embed(self, models: Mapping[str, Any], tokens: Tensors) -> Tensors:
        """Return T5's last hidden states, CLIP's pooled text, and training's guidance scale."""
        pooled = models["text_encoder"](tokens["clip_ids"]).pooler_output
        text = models["text_encoder_2"](tokens["t5_ids"])[0]
        return self.with_guidance({"text": text, "pooled": pooled}, 1.0)

    def needs_negative(self, scale: float) -> bool:
        """Never: one forward pass is already guided. There is no negative prompt."""
        return False

    def with_guidance(self, condition: Tensors, scale: float) -> Tensors:
        """Add the scale as an input of each row."""
        pooled = condition["pooled"]
        return {**condition, "guidance": pooled.new_full((len(pooled),), scale).float()}

    def predict(
        self, denoiser: nn.Module, latents_BCHW: Tensor, timesteps_B: Tensor, condition: Tensors
    ) -> Tensor:
        """Return the transformer's output: noise minus image."""
        height, width = latents_BCHW.shape[2:]
        text = condition["text"]
        config: Any = denoiser.config
        tokens = denoiser(
            hidden_states=pack(latents_BCHW),
            timestep=sigmas_of(timesteps_B),
            guidance=condition["guidance"] if config.guidance_embeds else None,
            pooled_projections=condition["pooled"],
            encoder_hidden_states=text,
            txt_ids=text.new_zeros(text.shape[1], 3),
            img_ids=positions(height // PATCH, width // PATCH, 3, text),
            return_dict=False,
        )[0]
        return unpack(tokens, height, width)


FAMILY = Flux()
