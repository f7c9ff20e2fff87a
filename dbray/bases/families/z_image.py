"""Z-Image: one list of tokens for text and image, read by Qwen3 with its chat template.

Time runs backwards in its transformer, from 0 for noise to 1 for the image, and the output is image
minus noise. Guidance 6 is 5 in diffusers' pipeline, where 0 means no guidance: here 1 does, as in
every family.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dbray.bases.families.family import Tensors, recipes
from dbray.bases.families.flow_family import FlowFamily, chat, sigmas_of, token_ids

if TYPE_CHECKING:
    from torch import Tensor, nn


class ZImage(FlowFamily):
    """See the module."""

    name = "Z-Image"
    models = {  # noqa: RUF012 - never changed
        "transformer": "diffusers.ZImageTransformer2DModel",
        "vae": "diffusers.AutoencoderKL",
        "text_encoder": "transformers.Qwen3Model",
    }
    model_types = {"text_encoder": ("qwen3",)}  # noqa: RUF012 - as above
    tokenizers = {"tokenizer": "Qwen2Tokenizer"}  # noqa: RUF012 - as above
    text_encoders = ("text_encoder",)
    trained_encoders = ()
    channels_per_latent = 1
    targets = {  # noqa: RUF012 - as above
        "attention": ("to_q", "to_k", "to_v", "to_out.0"),
        "feed_forward": ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
    }
    default_targets = ("attention",)
    recipes = recipes(lora={"learning_rate": 1e-4, "warmup_steps": 100, "steps": 500})
    defaults = {  # noqa: RUF012 - those of the pipeline
        "prior": {"sampler": "euler", "guidance": 6.0},
        "previews": {"sampler": "euler", "guidance": 6.0},
    }

    few_steps = {"steps": 8, "guidance": 1.0}  # noqa: RUF012 - nobody changes it

    def width(self, config: Mapping[str, Any]) -> int:
        """See FlowFamily."""
        return config["dim"]

    def num_blocks(self, config: Mapping[str, Any]) -> int:
        """See FlowFamily. Refiners read either the text or the noise."""
        return config["n_layers"] + config["n_refiner_layers"]

    def num_targets(self, config: Mapping[str, Any], group: str) -> int | None:
        """The text and the noise have refiners besides the common blocks."""
        blocks = config["n_layers"] + 2 * config["n_refiner_layers"]
        return {"attention": 4 * blocks, "feed_forward": 3 * blocks}.get(group)

    def tokenize(self, tokenizers: Mapping[str, Any], prompts: Sequence[str]) -> Tensors:
        """Return token ids of the chat, and the mask of non-padding tokens."""
        tokenizer = tokenizers["tokenizer"]
        return token_ids(tokenizer, chat(tokenizer, prompts, thinking=True), self.text_length)

    def framed(self, reader: Any, prompt: str) -> str:
        """Return the chat."""
        return chat(reader, [prompt], thinking=True)[0]

    def embed(self, models: Mapping[str, Any], tokens: Tensors) -> Tensors:
        """Return the second-last hidden states."""
        mask = tokens["mask"].bool()
        found = models["text_encoder"](
            input_ids=tokens["ids"], attention_mask=mask, output_hidden_states=True, use_cache=False
        )
        return {"text": found.hidden_states[-2], "mask": mask}

    def predict(
        self, denoiser: nn.Module, latents_BCHW: Tensor, timesteps_B: Tensor, condition: Tensors
    ) -> Tensor:
        """Return the transformer's output, negated: noise minus image."""
        import torch

        rows = zip(condition["text"], condition["mask"], strict=True)
        answers = denoiser(
            list(latents_BCHW.unsqueeze(2)),
            1 - sigmas_of(timesteps_B),
            [text[mask] for text, mask in rows],
            return_dict=False,
        )[0]
        return -torch.stack(answers).squeeze(2)

    def encode(self, models: Mapping[str, Any], pixels_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mode of the posterior, as in diffusers' own recipe."""
        mean, deviation = super().encode(models, pixels_NCHW)
        return mean, deviation * 0


FAMILY = ZImage()
