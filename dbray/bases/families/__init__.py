"""The table of families: from the class in `model_index.json` to the module of its family.

A family is one file in this folder, and one line in `FAMILIES`. Importing this package loads
neither torch nor diffusers.
"""

from __future__ import annotations

from importlib import import_module

from dbray.bases.families.family import Family
from dbray.errors import BaseError

FAMILIES = {
    "StableDiffusionPipeline": "stable_diffusion",
    "StableDiffusionXLPipeline": "sdxl",
    "FluxPipeline": "flux",
    "ZImagePipeline": "z_image",
    "StableDiffusion3Pipeline": "stable_diffusion_3",
    "Flux2KleinPipeline": "flux2_klein",
    "QwenImagePipeline": "qwen_image",
    "IFPipeline": "deepfloyd_if",
    "IFSuperResolutionPipeline": "deepfloyd_if_ii",
    "StableDiffusionUpscalePipeline": "x4_upscaler",
}
"""From the `_class_name` in a base's index to the file in this folder with its FAMILY."""


def family_of(class_name: object) -> Family:
    """Return the family of a pipeline class.

    Raises:
        BaseError: the class is not supported.
    """
    file = FAMILIES.get(class_name) if isinstance(class_name, str) else None
    if file is None:
        known = ", ".join(sorted(FAMILIES))
        raise BaseError(f"its pipeline class {class_name!r} is not supported; choose a base whose "
                        f"{'model_index.json'} names one of: {known}")  # fmt: skip
    return import_module(f"{__name__}.{file}").FAMILY
