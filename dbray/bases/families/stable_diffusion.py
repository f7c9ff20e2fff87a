"""Stable Diffusion 1.x and 2.x: a UNet over an autoencoder's latents, conditioned by one CLIP text.

With epsilon or v-prediction. Source: Rombach et al. 2022 (arXiv 2112.10752).
Shape suffixes: N prompts, B rows, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from dbray.bases import clip_layout
from dbray.bases.families.family import KEPT_PER_BLOCK, Family, Tensors, recipes
from dbray.errors import BaseError
from dbray.spec.flow import Flow

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dbray.bases.layout import Layout
    from dbray.bases.schedule import Schedule
    from dbray.spec.recipe import Recipe
    from dbray.spec.sections import Sampler

PREDICTIONS = ("epsilon", "v_prediction")
_PER_RESIDUAL = 20
"""As KEPT_PER_BLOCK, of a residual block."""


class StableDiffusion(Family):
    """See the module."""

    name = "Stable Diffusion 1.x or 2.x"
    models = {  # noqa: RUF012 - never changed
        "unet": "diffusers.UNet2DConditionModel",
        "vae": "diffusers.AutoencoderKL",
        "text_encoder": "transformers.CLIPTextModel",
    }
    tokenizers = {"tokenizer": "CLIPTokenizer"}  # noqa: RUF012 - as above
    denoiser = "unet"
    targets = {  # noqa: RUF012 - as above
        "attention": ("to_q", "to_k", "to_v", "to_out.0"),
        "feed_forward": ("ff.net.0.proj", "ff.net.2"),
        "convolutions": ("conv1", "conv2"),
    }
    recipes = recipes(lora={"learning_rate": 1e-4, "steps": 500})
    text_encoders = ("text_encoder",)
    inputs = "latents and a text"
    """Of the UNet, for messages."""
    num_extra_inputs = 0
    """Input channels of the UNet beside the latents."""
    other_inputs: tuple[str, ...] = (
        "addition_embed_type",
        "addition_time_embed_dim",
        "projection_class_embeddings_input_dim",
        "class_embed_type",
        "num_class_embeds",
        "encoder_hid_dim",
        "encoder_hid_dim_type",
        "time_cond_proj_dim",
    )
    """Keys of the UNet's configuration that require inputs which dbray does not give."""
    samplers = ("ddpm", "euler_ancestral", "ddim", "dpm++", "dpm++_sde")
    # Clipping to [-1, 1] is for pixels and washes latents out. It is the default of ddpm and ddim,
    # and a base saved with another scheduler (Euler, DPM++, UniPC) does not disable it.
    clipping: ClassVar[Mapping[str, Any]] = {"clip_sample": False}

    def check(self, layout: Layout) -> None:
        """Reject pipelines that need more than noisy latents and text, or have other targets."""
        unet, vae = layout.config("unet"), layout.config("vae")
        texts = [layout.config(part) for part in self.text_encoders]
        kinds = [text.get("model_type") for text in texts]
        found = [unet.get("_class_name"), vae.get("_class_name"), *kinds]
        if found != ["UNet2DConditionModel", "AutoencoderKL", *["clip_text_model"] * len(kinds)]:
            raise self.refused(f"its parts are {', '.join(map(str, found))}")
        self._check_inputs(unet, vae, texts)
        for part, tokenizer in zip(self.text_encoders, self.tokenizers, strict=True):
            text = layout.config(part)
            self._check_tokenizer(tokenizer, layout.config(tokenizer), text)
            clip_layout.check(part, layout.shapes(part), text)
        prediction = layout.config("scheduler").get("prediction_type", "epsilon")
        if prediction not in PREDICTIONS:
            raise BaseError(f"it predicts {prediction!r}, but dbray supports only "
                            f"{' and '.join(PREDICTIONS)}; choose another base")  # fmt: skip

    def _check_inputs(
        self, unet: Mapping[str, Any], vae: Mapping[str, Any], texts: Sequence[Mapping[str, Any]]
    ) -> None:
        """Reject inputs that `predict` does not pass on, and parts that do not fit each other."""
        for key in self.other_inputs:
            if unet.get(key) is not None:
                raise self.refused(f"its UNet needs more than {self.inputs}: {key} is "
                                   f"{unet[key]!r}")  # fmt: skip
        if any(text.get("use_attention_mask") for text in texts):
            raise self.refused("its text encoder needs an attention mask")
        channels = vae.get("latent_channels")
        for key, extra in (("in_channels", self.num_extra_inputs), ("out_channels", 0)):
            if unet.get(key, 0) - extra != channels:
                raise self.refused(f"{key} of its UNet is {unet.get(key)}, but its latents have "
                                   f"{channels} channels")  # fmt: skip
        widths, width = unet.get("cross_attention_dim"), sum(t.get("hidden_size", 0) for t in texts)
        if width not in (widths if isinstance(widths, list) else [widths]):
            raise self.refused(f"cross_attention_dim of its UNet is {widths}, but its texts are "
                               f"{width} wide")  # fmt: skip

    def _check_tokenizer(
        self, part: str, tokenizer: Mapping[str, Any], text: Mapping[str, Any]
    ) -> None:
        """Check the limit: without one, prompts would be padded to billions of tokens."""
        length, most = tokenizer.get("model_max_length"), text.get("max_position_embeddings")
        if not isinstance(length, int) or not isinstance(most, int) or not 2 < length <= most:
            raise BaseError(f"model_max_length of its {part} is {length!r}, but its text "
                            f"encoder reads {most} tokens; set model_max_length to {most} in "
                            f"{part}/tokenizer_config.json")  # fmt: skip

    def resolution(self, layout: Layout) -> int:
        """Return the UNet's sample size, in pixels."""
        side = layout.config("unet").get("sample_size")
        levels = layout.config("vae").get("block_out_channels")
        if not isinstance(side, int) or not isinstance(levels, list) or not levels:
            file = layout.folder / "unet" / "config.json"
            raise BaseError(
                f"the size of its images is unknown: sample_size of {file} is {side!r}, "
                f"block_out_channels of the vae's is {levels!r}; set sample_size to the side of "
                "the latents, which is 64 for 512 pixels"
            )
        return side * 2 ** (len(levels) - 1)

    def unfit(self, layout: Layout, recipe: Recipe) -> Iterator[tuple[str, str]]:
        """See Family."""
        yield from super().unfit(layout, recipe)
        if recipe.flow != Flow():
            what = f"flow is not for {self.name}: its noise has steps of its own, drawn uniformly"
            yield what, "leave out flow; min_snr_gamma weights the steps"

    def num_targets(self, config: Mapping[str, Any], group: str) -> int | None:
        """Every block has two attentions of four layers, and a feed-forward of two."""
        per_block = {"attention": 8, "feed_forward": 2}.get(group)
        return None if per_block is None else per_block * num_blocks(config)

    def kept_values(self, layout: Layout, recipe: Recipe) -> int:
        """See Family. Each level halves the sides of the one before."""
        config = layout.config(self.denoiser)
        pixels = recipe.resolution or self.resolution(layout)
        side = self.latent_shape(layout.autoencoder, (pixels, pixels))[1]
        inputs = inside = 0
        for (residual, transformers), channels in zip(
            _blocks(config), config["block_out_channels"], strict=True
        ):
            each = channels * side**2
            inputs += each * (residual + transformers)
            inside += each * (_PER_RESIDUAL * residual + KEPT_PER_BLOCK * transformers)
            side //= 2
        return inputs if recipe.gradient_checkpointing else inside

    def schedule(self, config: Mapping[str, Any]) -> Schedule:
        """Use the base's own betas and prediction type."""
        from dbray.bases.schedule import NoiseSchedule

        alphas_cumprod = self.scheduler("ddpm", config).alphas_cumprod
        return NoiseSchedule(alphas_cumprod, config.get("prediction_type", "epsilon"))

    def scheduler(self, name: Sampler, config: Mapping[str, Any]) -> Any:
        """Make one of diffusers' samplers with the base's noise schedule."""
        import diffusers

        dpm = diffusers.DPMSolverMultistepScheduler
        schedulers: dict[str, tuple[Any, Mapping[str, Any]]] = {
            "ddpm": (diffusers.DDPMScheduler, self.clipping),
            "ddim": (diffusers.DDIMScheduler, self.clipping),
            "euler_ancestral": (diffusers.EulerAncestralDiscreteScheduler, {}),
            "dpm++": (dpm, {"algorithm_type": "dpmsolver++"}),
            "dpm++_sde": (dpm, {"algorithm_type": "sde-dpmsolver++"}),
        }
        scheduler_class, options = schedulers[name]
        return scheduler_class.from_config(config, **options)

    def tokenize(self, tokenizers: Mapping[str, Any], prompts: Sequence[str]) -> Tensors:
        """Return token ids, padded and cut to the tokenizer's length."""
        return {"token_ids": token_ids(tokenizers["tokenizer"], prompts)}

    def embed(self, models: Mapping[str, Any], tokens: Tensors) -> Tensors:
        """Return the text encoder's last hidden states."""
        return {"text": models["text_encoder"](tokens["token_ids"])[0]}

    def predict(
        self, denoiser: nn.Module, latents_BCHW: Tensor, timesteps_B: Tensor, condition: Tensors
    ) -> Tensor:
        """Return the UNet's output."""
        return denoiser(latents_BCHW, timesteps_B, condition["text"], return_dict=False)[0]


def token_ids(tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    """Return token ids of N prompts, padded and cut to the tokenizer's length."""
    return tokenizer(
        list(prompts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids


def num_blocks(config: Mapping[str, Any]) -> int:
    """Count the transformer blocks of a UNet2DConditionModel from its configuration."""
    return sum(transformers for _, transformers in _blocks(config))


def _blocks(config: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Count residual and transformer blocks of each level of a UNet, the finest first."""
    down, up = config["down_block_types"], config["up_block_types"]
    layers = _each(config.get("layers_per_block", 2), down)
    depths = _each(config.get("transformer_layers_per_block", 1), down)
    found = []
    for down_kind, up_kind, num, depth in zip(down, reversed(up), layers, depths, strict=True):
        attending = num * ("CrossAttn" in down_kind) + (num + 1) * ("CrossAttn" in up_kind)
        found.append((2 * num + 1, attending * depth))
    if config.get("mid_block_type", "UNetMidBlock2DCrossAttn"):
        residual, transformers = found[-1]
        found[-1] = residual + 2, transformers + depths[-1]
    return found


def _each(value: int | Sequence[int], blocks: Sequence[str]) -> list[int]:
    return [value] * len(blocks) if isinstance(value, int) else list(value)


FAMILY = StableDiffusion()
