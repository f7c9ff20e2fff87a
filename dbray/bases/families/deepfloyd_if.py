"""DeepFloyd IF's first stage: a UNet over pixels, conditioned by T5, that also predicts a variance.

Its output is the noise and, in as many further channels, the variance of an ancestral step between
its bounds (Nichol and Dhariwal 2021, arXiv 2102.09672). Fine-tuning compares the noise alone: the
rows of the last layer that give the variance stay as they are, bit for bit, and its sampler goes on
using them. Source: Saharia et al. 2022 (arXiv 2205.11487), whose design IF follows.
Shape suffixes: B rows, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dbray.bases.families.family import Tensors, recipes
from dbray.bases.families.flow_family import token_ids
from dbray.bases.families.stable_diffusion import StableDiffusion, num_blocks
from dbray.errors import BaseError

if TYPE_CHECKING:
    from torch import Tensor

    from dbray.bases.layout import Layout

CHANNELS = 3
_TEXT_LENGTH = 77
"""What T5 reads for IF; longer texts were never trained."""


class DeepFloydIF(StableDiffusion):
    """See the module."""

    name = "DeepFloyd IF I"
    models = {  # noqa: RUF012 - never changed
        "unet": "diffusers.UNet2DConditionModel",
        "text_encoder": "transformers.T5EncoderModel",
    }
    tokenizers = {"tokenizer": "T5TokenizerFast"}  # noqa: RUF012 - as above
    reads_case = False
    autoencoder = None
    undecayed = ("conv_out.weight", "conv_out.bias")
    trained_encoders = ()
    taught_encoders = ("text_encoder",)
    other_inputs = (
        "class_embed_type",
        "num_class_embeds",
        "addition_time_embed_dim",
        "projection_class_embeddings_input_dim",
        "time_cond_proj_dim",
    )
    inputs = "pixels and a text"
    num_inputs = CHANNELS
    """Input channels of the UNet."""
    targets = {  # noqa: RUF012 - as above
        "attention": ("to_q", "to_k", "to_v", "add_k_proj", "add_v_proj", "to_out.0"),
        "convolutions": ("conv1", "conv2"),
    }
    default_targets = ("attention",)
    recipes = recipes(
        lora={"learning_rate": 5e-6, "steps": 1200}, full={"learning_rate": 1e-7, "steps": 150}
    )
    samplers = ("ddpm", "dpm++", "dpm++_sde")  # they take the variance, or leave it out
    clipping = {}  # noqa: RUF012 - never changed; as the base says
    defaults = {  # noqa: RUF012 - those of the pipeline
        "prior": {"sampler": "ddpm", "steps": 100, "guidance": 7.0},
        "previews": {"sampler": "ddpm", "steps": 100, "guidance": 7.0},
    }

    def check(self, layout: Layout) -> None:
        """Reject other parts and other inputs, and a sampler that does not take the variance."""
        unet, text = layout.config("unet"), layout.config("text_encoder")
        found = [unet.get("_class_name"), text.get("model_type")]
        if found != ["UNet2DConditionModel", "t5"]:
            raise self.refused(f"its parts are {', '.join(map(str, found))}")
        self._check_unet(unet, text)
        scheduler = layout.config("scheduler")
        if scheduler.get("prediction_type", "epsilon") != "epsilon":
            raise self.refused(f"it predicts {scheduler['prediction_type']!r}, not the noise")
        learns = scheduler.get("variance_type") in ("learned", "learned_range")
        if learns != (unet.get("out_channels") == 2 * CHANNELS):
            raise BaseError(f"its scheduler has variance_type {scheduler.get('variance_type')!r}, "
                            f"but its UNet has {unet.get('out_channels')} output channels; use the "
                            "scheduler that the base was published with")  # fmt: skip

    def _check_unet(self, unet: Mapping[str, Any], text: Mapping[str, Any]) -> None:
        for key in self.other_inputs:
            if unet.get(key) is not None:
                raise self.refused(f"its UNet needs more than {self.inputs}: {key} is "
                                   f"{unet[key]!r}")  # fmt: skip
        wanted = {
            "in_channels": (self.num_inputs,),
            "out_channels": (CHANNELS, 2 * CHANNELS),
            "encoder_hid_dim": (text.get("d_model"),),
            "encoder_hid_dim_type": (None, "text_proj"),
            "addition_embed_type": ("text",),
        }
        for key, allowed in wanted.items():
            if unet.get(key) not in allowed:
                raise self.refused(f"{key} of its UNet is {unet.get(key)!r}, not "
                                   f"{' or '.join(map(str, allowed))}")  # fmt: skip

    def resolution(self, layout: Layout) -> int:
        """Return the UNet's sample size."""
        side = layout.config("unet").get("sample_size")
        if not isinstance(side, int):
            raise BaseError(f"the size of its images is unknown: sample_size of its UNet is "
                            f"{side!r}; set it to their side in pixels")  # fmt: skip
        return side

    def num_targets(self, config: Mapping[str, Any], group: str) -> int | None:
        """Every block has one attention, of six layers."""
        if group != "attention" or config.get("only_cross_attention"):
            return None
        return len(self.targets["attention"]) * num_blocks(config)

    def tokenize(self, tokenizers: Mapping[str, Any], prompts: Sequence[str]) -> Tensors:
        """Return token ids of the lower-cased prompts, and the mask of non-padding tokens."""
        reader = tokenizers["tokenizer"]
        return token_ids(reader, [self.framed(reader, one) for one in prompts], _TEXT_LENGTH)

    def max_tokens(self, reader: Any) -> int:
        """See Family."""
        return _TEXT_LENGTH

    def framed(self, reader: Any, prompt: str) -> str:
        """Return the prompt as the pipeline reads it."""
        return prompt.lower().strip()

    def embed(self, models: Mapping[str, Any], tokens: Tensors) -> Tensors:
        """Return T5's last hidden states, of which padding is no part."""
        return {"text": models["text_encoder"](tokens["ids"], attention_mask=tokens["mask"])[0]}

    def targeted(self, prediction_BCHW: Tensor) -> Tensor:
        """Return the noise, without the variance."""
        return prediction_BCHW[:, :CHANNELS]

    def guide(self, positive_BCHW: Tensor, negative_BCHW: Tensor, scale: float) -> Tensor:
        """Guide the noise; the variance is that of the prompt."""
        import torch

        noise = super().guide(self.targeted(positive_BCHW), self.targeted(negative_BCHW), scale)
        return torch.cat([noise, positive_BCHW[:, CHANNELS:]], dim=1)

    def latent_shape(self, vae: Mapping[str, Any], size: tuple[int, int]) -> tuple[int, int, int]:
        """Return the shape of the pixels."""
        width, height = size
        return CHANNELS, height, width

    def encode(self, models: Mapping[str, Any], pixels_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pixels, which have no deviation."""
        return pixels_NCHW, pixels_NCHW.new_zeros(pixels_NCHW.shape)

    def decode(self, models: Mapping[str, Any], latents_NCHW: Tensor) -> Tensor:
        """Return the pixels."""
        return latents_NCHW


FAMILY = DeepFloydIF()
