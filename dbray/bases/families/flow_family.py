"""The common part of the families of transformers trained by flow matching.

Their samplers, their schedule, the shift of their noise levels by image size, and the checks of
their configurations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from dbray.bases.families.family import KEPT_PER_BLOCK, Family, Tensors, latent_factor
from dbray.bases.families.packing import PATCH
from dbray.errors import BaseError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dbray.bases.layout import Layout
    from dbray.bases.schedule import Schedule
    from dbray.spec.flow import Density, Weighting
    from dbray.spec.recipe import Recipe
    from dbray.spec.sections import Sampler

_SCHEDULER = "FlowMatchEulerDiscreteScheduler"
NATIVE_LATENTS = 128
"""Side of the latents of the training images; it is in no configuration."""


class FlowFamily(Family):
    """The defaults are those of a transformer over patches of 2 x 2 latents."""

    denoiser = "transformer"
    samplers = ("euler",)
    model_types: ClassVar[Mapping[str, tuple[str, ...]]]
    """Allowed `model_type`s of the configuration, by text encoder."""
    density: ClassVar[Density] = "uniform"
    weighting: ClassVar[Weighting] = "none"
    """How they were trained; see `dbray.bases.flow`."""
    text_length = 512
    """Tokens of the text that the transformer reads."""
    channels_per_latent = PATCH**2
    """Input channels of the transformer for each channel of the latents."""

    def check(self, layout: Layout) -> None:
        """Reject other parts, other schedulers, and transformers with more inputs."""
        for part, allowed in self._classes().items():
            config = layout.config(part)
            found = config.get("_class_name") or config.get("model_type")
            if found not in allowed:
                raise self.refused(f"its {part} is {found}, not {' or '.join(allowed)}")
        takes = layout.config(self.denoiser).get("in_channels")
        has = self.latent_channels(layout.config("vae")) * self.channels_per_latent
        if takes != has:
            raise self.refused(f"its transformer takes {takes} channels, not the {has} of its "
                               "latents")  # fmt: skip

    def _classes(self) -> dict[str, tuple[str, ...]]:
        """Return the allowed classes of each part."""
        diffusers = {
            part: (name.partition(".")[2],)
            for part, name in self.models.items()
            if name.startswith("diffusers.")
        }
        return {**diffusers, **self.model_types, "scheduler": (_SCHEDULER,)}

    def max_tokens(self, reader: Any) -> int:
        """Return the length of the text; a CLIP beside it reads only the beginning."""
        return self.text_length

    def latent_channels(self, vae: Mapping[str, Any]) -> int:
        """Return the channels of the latents, from the autoencoder's configuration."""
        return vae.get("latent_channels", 0)

    def factor(self, vae: Mapping[str, Any]) -> int:
        """Return the pixels per latent along a side, from the autoencoder's configuration."""
        return latent_factor(vae)

    def resolution(self, layout: Layout) -> int:
        """See Family."""
        return NATIVE_LATENTS * self.factor(layout.config("vae"))

    def unfit(self, layout: Layout, recipe: Recipe) -> Iterator[tuple[str, str]]:
        """See Family."""
        yield from super().unfit(layout, recipe)
        if recipe.min_snr_gamma is not None:
            what = f"min_snr_gamma is not for {self.name}, which is trained by flow matching"
            yield what, "leave out min_snr_gamma, or set flow.weighting"
        if recipe.noise_offset:
            what = (f"noise_offset is not for {self.name}: its noisiest level holds nothing of the "
                    "image, so that the mean of a channel is learnt already")  # fmt: skip
            yield what, "leave out noise_offset"
        flow = recipe.flow
        has_logits = (flow.logit_mean, flow.logit_std) != (None, None)
        if has_logits and (flow.density or self.density) != "logit_normal":
            what = "flow.logit_mean and flow.logit_std are of the density logit_normal alone"
            yield what, "set flow.density to logit_normal, or leave them out"
        step = PATCH * self.factor(layout.config("vae"))
        if recipe.resolution is not None and recipe.resolution % step:
            what = f"resolution {recipe.resolution} is not a multiple of {step}"
            yield what, f"set resolution to {max(step, recipe.resolution // step * step)}"

    def kept_values(self, layout: Layout, recipe: Recipe) -> int:
        """See Family. All blocks are as wide, and read the tokens of image and text."""
        config = layout.config(self.denoiser)
        side = (recipe.resolution or self.resolution(layout)) // self.factor(layout.config("vae"))
        each = (side**2 // PATCH**2 + self.text_length) * self.width(config)
        blocks = self.num_blocks(config)
        if recipe.gradient_checkpointing:  # the input of each, and one block that is computed again
            return each * (blocks + KEPT_PER_BLOCK)
        return each * blocks * KEPT_PER_BLOCK

    def width(self, config: Mapping[str, Any]) -> int:
        """Channels of the transformer, by its configuration."""
        return config["num_attention_heads"] * config["attention_head_dim"]

    def num_blocks(self, config: Mapping[str, Any]) -> int:
        """Blocks of the transformer, by its configuration."""
        return config["num_layers"] + (config.get("num_single_layers") or 0)

    def schedule(self, config: Mapping[str, Any]) -> Schedule:
        """Over the table of the base's scheduler, as the family was trained."""
        from dbray.bases.flow import FlowSchedule

        return FlowSchedule.of(config, self.density, self.weighting)

    def scheduler(self, name: Sampler, config: Mapping[str, Any]) -> Any:
        """Make the only sampler of these families."""
        from diffusers import FlowMatchEulerDiscreteScheduler

        return FlowMatchEulerDiscreteScheduler.from_config(dict(config))

    def prepare(self, scheduler: Any, steps: int, shape: tuple[int, int, int]) -> Any:
        """See Family."""
        from dbray.bases.flow import FlowSampler

        self.set_timesteps(scheduler, steps, shape)
        return FlowSampler(scheduler)

    def set_timesteps(self, scheduler: Any, steps: int, shape: tuple[int, int, int]) -> None:
        """Even steps from 1 to 1 / steps, shifted towards noise: the larger the image, the more."""
        import numpy as np

        if steps == 1:  # stretching to a last level divides by the distance of the levels
            scheduler.register_to_config(shift_terminal=None)
        mu = None
        if scheduler.config["use_dynamic_shifting"]:
            mu = self.shift(scheduler.config, self.num_tokens(shape), steps)
        sigmas = np.linspace(1.0, 1 / steps, steps).tolist()
        scheduler.set_timesteps(steps, sigmas=sigmas, mu=mu)

    def num_tokens(self, shape: tuple[int, int, int]) -> int:
        """Return the number of tokens of latents of this shape (C, H, W)."""
        return shape[1] * shape[2] // PATCH**2

    def shift(self, config: Mapping[str, Any], num_tokens: int, steps: int) -> float:
        """Return mu: linear in the number of tokens, through two points of the configuration."""
        low, high = config["base_image_seq_len"], config["max_image_seq_len"]
        slope = (config["max_shift"] - config["base_shift"]) / (high - low)
        return config["base_shift"] + slope * (num_tokens - low)

    def latent_shape(self, vae: Mapping[str, Any], size: tuple[int, int]) -> tuple[int, int, int]:
        """See Family. Raises BaseError if the sides are not multiples of the patches."""
        factor = self.factor(vae)
        width, height = size
        if width % (PATCH * factor) or height % (PATCH * factor):
            raise BaseError(f"{width} x {height} pixels: the sides must be multiples of "
                            f"{PATCH * factor} for {self.name}; choose other sides")  # fmt: skip
        return self.latent_channels(vae), height // factor, width // factor


def token_ids(tokenizer: Any, texts: Sequence[str], length: int) -> Tensors:
    """Return token ids of texts and the mask of non-padding tokens, at a fixed length."""
    found = tokenizer(
        list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    return {"ids": found.input_ids, "mask": found.attention_mask}


def chat(tokenizer: Any, prompts: Sequence[str], thinking: bool) -> list[str]:
    """Return each prompt as the only user message, in the tokenizer's own template."""
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=thinking,
        )
        for prompt in prompts
    ]


def sigmas_of(timesteps_B: Tensor) -> Tensor:
    """Return the noise levels of timesteps."""
    from dbray.bases.flow import TIMESTEPS_PER_SIGMA

    return timesteps_B / TIMESTEPS_PER_SIGMA
