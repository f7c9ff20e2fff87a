"""Stable Diffusion's x4 upscaler: a UNet over latents that enlarges images to four times the sides.

The low-resolution image has the size of the latents, is noised, and is stacked on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dbray.bases.families.family import latent_factor
from dbray.bases.families.stable_diffusion import StableDiffusion
from dbray.bases.families.super_resolution import LOW_CHANNELS, SuperResolution

if TYPE_CHECKING:
    from dbray.bases.layout import Layout


class X4Upscaler(SuperResolution, StableDiffusion):
    """See the module."""

    name = "Stable Diffusion x4 upscaler"
    noising = "low_res_scheduler"
    usual_level = 20
    draws_low_first = True
    inputs = "latents, a low-resolution image and a text"
    num_extra_inputs = LOW_CHANNELS
    other_inputs = tuple(key for key in StableDiffusion.other_inputs if key != "num_class_embeds")
    defaults = {  # noqa: RUF012 - those of the pipeline
        "super_resolution": {"sampler": "ddim", "steps": 75, "guidance": 9.0},
    }

    def _check_inputs(
        self, unet: Mapping[str, Any], vae: Mapping[str, Any], texts: Sequence[Mapping[str, Any]]
    ) -> None:
        """See StableDiffusion; each noise level has an embedding."""
        super()._check_inputs(unet, vae, texts)
        if not unet.get("num_class_embeds"):
            raise self.refused("its UNet has no num_class_embeds")

    def scale(self, layout: Layout, first_resolution: int) -> int:
        """Return the pixels per latent, whatever the stage before draws."""
        return latent_factor(layout.autoencoder)


FAMILY = X4Upscaler()
