"""DeepFloyd IF's second stage: a UNet over pixels that enlarges the images of the first.

The low-resolution image is enlarged bilinearly to the full size, noised, and stacked on the noisy
pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dbray.bases.families.deepfloyd_if import CHANNELS, DeepFloydIF
from dbray.bases.families.family import recipes
from dbray.bases.families.super_resolution import LOW_CHANNELS, SuperResolution

if TYPE_CHECKING:
    from torch import Tensor


class DeepFloydIFII(SuperResolution, DeepFloydIF):
    """See the module."""

    name = "DeepFloyd IF II"
    noising = "image_noising_scheduler"
    usual_level = 250
    inputs = "pixels, a low-resolution image and a text"
    num_inputs = CHANNELS + LOW_CHANNELS
    other_inputs = tuple(key for key in DeepFloydIF.other_inputs if key != "class_embed_type")
    recipes = recipes(
        lora={"learning_rate": 1e-6, "steps": 2000}, full={"learning_rate": 5e-6, "steps": 2000}
    )
    defaults = {  # noqa: RUF012 - those of the pipeline
        "super_resolution": {"sampler": "ddpm", "steps": 50, "guidance": 4.0},
    }

    def _check_unet(self, unet: Mapping[str, Any], text: Mapping[str, Any]) -> None:
        """See DeepFloydIF; the noise level is one more timestep."""
        super()._check_unet(unet, text)
        if unet.get("class_embed_type") != "timestep":
            raise self.refused(f"class_embed_type of its UNet is {unet.get('class_embed_type')!r}, "
                               "not 'timestep'")  # fmt: skip

    def low_input(self, low_NCHW: Tensor, size: tuple[int, int]) -> Tensor:
        """Enlarge bilinearly, as the pipeline does."""
        from torch.nn.functional import interpolate

        width, height = size
        return interpolate(low_NCHW, (height, width), mode="bilinear", align_corners=True)


FAMILY = DeepFloydIFII()
