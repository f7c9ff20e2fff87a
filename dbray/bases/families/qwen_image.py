"""Qwen-Image: a transformer over text in a fixed template and latents of a video autoencoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dbray.bases.families.family import Tensors, recipes
from dbray.bases.families.flow_family import FlowFamily, sigmas_of
from dbray.bases.families.packing import PATCH, pack, unpack

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dbray.bases.layout import Layout

_BEFORE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, "
    "quantity, text, spatial relationships of the objects and background:<|im_end|>\n"
    "<|im_start|>user\n"
)
_AFTER = "<|im_end|>\n<|im_start|>assistant\n"
_NUM_BEFORE = 34
"""Tokens before the prompt, which are cut off before the transformer."""
_READ, _LENGTH = 1024, 512
"""Tokens after it: how many the text encoder reads at most, and how many are kept."""
_OTHER_INPUTS = ("zero_cond_t", "use_additional_t_cond", "use_layer3d_rope")


class QwenImage(FlowFamily):
    """See the module."""

    name = "Qwen-Image"
    models = {  # noqa: RUF012 - never changed
        "transformer": "diffusers.QwenImageTransformer2DModel",
        "vae": "diffusers.AutoencoderKLQwenImage",
        "text_encoder": "transformers.Qwen2_5_VLForConditionalGeneration",
    }
    model_types = {"text_encoder": ("qwen2_5_vl",)}  # noqa: RUF012 - as above
    tokenizers = {"tokenizer": "Qwen2Tokenizer"}  # noqa: RUF012 - as above
    text_encoders = ("text_encoder",)
    trained_encoders = ()
    no_prompt = " "
    targets = {  # noqa: RUF012 - as above
        "attention": ("to_q", "to_k", "to_v", "to_out.0"),
        "text_attention": ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        "feed_forward": (
            "img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2",
        ),
    }  # fmt: skip
    default_targets = ("attention",)
    recipes = recipes(lora={"learning_rate": 2e-4, "steps": 500})
    defaults = {  # noqa: RUF012 - those of the pipeline
        "prior": {"sampler": "euler", "guidance": 4.0},
        "previews": {"sampler": "euler", "guidance": 4.0},
    }

    def check(self, layout: Layout) -> None:
        """See Family. Qwen-Image-Edit and -Layered have other inputs."""
        super().check(layout)
        config = layout.config(self.denoiser)
        if others := [name for name in _OTHER_INPUTS if config.get(name)]:
            raise self.refused(f"its transformer has set {', '.join(others)}")

    def latent_channels(self, vae: Mapping[str, Any]) -> int:
        """See FlowFamily."""
        return vae.get("z_dim", 0)

    def factor(self, vae: Mapping[str, Any]) -> int:
        """See FlowFamily."""
        return 2 ** len(vae["temperal_downsample"])

    def num_targets(self, config: Mapping[str, Any], group: str) -> int | None:
        """Four layers per group and block."""
        return 4 * config["num_layers"] if group in self.targets else None

    def guide(self, positive_BCHW: Tensor, negative_BCHW: Tensor, scale: float) -> Tensor:
        """Classifier-free guidance, with each token rescaled to the norm of that for the prompt."""
        mixed = pack(super().guide(positive_BCHW, negative_BCHW, scale))
        wanted = pack(positive_BCHW).norm(dim=-1, keepdim=True)
        scaled = mixed * (wanted / mixed.norm(dim=-1, keepdim=True))
        return unpack(scaled, positive_BCHW.shape[2], positive_BCHW.shape[3])

    def tokenize(self, tokenizers: Mapping[str, Any], prompts: Sequence[str]) -> Tensors:
        """Return token ids of the template, and the mask of non-padding tokens."""
        found = tokenizers["tokenizer"](
            [self.framed(tokenizers["tokenizer"], prompt) for prompt in prompts],
            padding=True, max_length=_NUM_BEFORE + _READ, truncation=True, return_tensors="pt",
        )  # fmt: skip
        return {"ids": found.input_ids, "mask": found.attention_mask}

    def max_tokens(self, reader: Any) -> int:
        """Return the limit: the tokens of the transformer, and those cut off before them."""
        return _NUM_BEFORE + _LENGTH

    def framed(self, reader: Any, prompt: str) -> str:
        """Return the prompt in the template."""
        return f"{_BEFORE}{prompt}{_AFTER}"

    def embed(self, models: Mapping[str, Any], tokens: Tensors) -> Tensors:
        """Return the last hidden states from the prompt on, followed by zeros."""
        from torch.nn.functional import pad

        found = models["text_encoder"](
            input_ids=tokens["ids"], attention_mask=tokens["mask"], output_hidden_states=True
        )
        kept = slice(_NUM_BEFORE, _NUM_BEFORE + _LENGTH)
        mask = tokens["mask"][:, kept].bool()
        text = found.hidden_states[-1][:, kept] * mask.unsqueeze(-1)
        missing = _LENGTH - text.shape[1]
        return {"text": pad(text, (0, 0, 0, missing)), "mask": pad(mask, (0, missing))}

    def encode(self, models: Mapping[str, Any], pixels_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """See Family. An image is a video of one frame."""
        mean, deviation = _statistics(models["vae"], pixels_NCHW)
        posterior = models["vae"].encode(pixels_NCHW.unsqueeze(2)).latent_dist
        return (posterior.mean[:, :, 0] - mean) / deviation, posterior.std[:, :, 0] / deviation

    def decode(self, models: Mapping[str, Any], latents_NCHW: Tensor) -> Tensor:
        """See Family."""
        mean, deviation = _statistics(models["vae"], latents_NCHW)
        return models["vae"].decode((latents_NCHW * deviation + mean).unsqueeze(2)).sample[:, :, 0]

    def predict(
        self, denoiser: nn.Module, latents_BCHW: Tensor, timesteps_B: Tensor, condition: Tensors
    ) -> Tensor:
        """Return the transformer's output: noise minus image."""
        height, width = latents_BCHW.shape[2:]
        tokens = denoiser(
            hidden_states=pack(latents_BCHW),
            timestep=sigmas_of(timesteps_B),
            guidance=None,
            encoder_hidden_states=condition["text"],
            encoder_hidden_states_mask=condition["mask"],
            img_shapes=[[(1, height // PATCH, width // PATCH)]] * len(latents_BCHW),
            return_dict=False,
        )[0]
        return unpack(tokens, height, width)


def _statistics(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of each channel of the latents, from the configuration."""
    mean, deviation = vae.config.latents_mean, vae.config.latents_std
    return like.new_tensor(mean).view(1, -1, 1, 1), like.new_tensor(deviation).view(1, -1, 1, 1)


FAMILY = QwenImage()
