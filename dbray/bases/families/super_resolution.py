"""The common part of the families of super-resolution networks: the second stages of cascades.

Besides noisy latents and text, they read a low-resolution image, which is noised at a level, and
that level. See `dbray.bases.low_images` for the noise.
Shape suffixes: N images, B rows, C channels, H height, W width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from dbray.bases.families.family import Family, Tensors
from dbray.errors import BaseError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dbray.bases.layout import Layout

LOW, LEVEL = "low", "level"
"""Names in a condition: the low-resolution image, and its noise level."""
LOW_CHANNELS = 3


class SuperResolution(Family):
    """What a network with a low-resolution image does differently."""

    noising: ClassVar[str]
    """Folder of the scheduler by which low-resolution images are noised."""
    usual_level: ClassVar[int]
    """The level at which the pipeline noises low-resolution images unless it is given another."""
    draws_low_first: ClassVar[bool] = False
    """Whether the pipeline draws the noise of the low image before that of the latents."""

    @property
    def schedulers(self) -> tuple[str, ...]:
        """See Family."""
        return ("scheduler", self.noising)

    def scale(self, layout: Layout, first_resolution: int) -> int:
        """Return by how much it enlarges a side.

        Args:
            layout: its folder.
            first_resolution: side of the images of the stage before, in pixels.

        Raises:
            BaseError: it does not fit the stage before.
        """
        own = self.resolution(layout)
        if own <= first_resolution or own % first_resolution:
            raise BaseError(f"it draws {own} px, which is no multiple of the {first_resolution} px "
                            "of the first stage; name stages that fit")  # fmt: skip
        return own // first_resolution

    def low_input(self, low_NCHW: Tensor, size: tuple[int, int]) -> Tensor:
        """Return low images as the network takes them, for images of (width, height) pixels."""
        return low_NCHW

    def predict(
        self, denoiser: nn.Module, latents_BCHW: Tensor, timesteps_B: Tensor, condition: Tensors
    ) -> Tensor:
        """Return the UNet's output for latents beside the noised low images."""
        import torch

        return denoiser(
            torch.cat([latents_BCHW, condition[LOW]], dim=1),
            timesteps_B,
            condition["text"],
            class_labels=condition[LEVEL],
            return_dict=False,
        )[0]
