"""Tiny random bases of each family in the diffusers layout, built offline in about a second.

Their weights are random; all sizes that a mistake could confuse are different.
"""

from __future__ import annotations

from kit.families.deepfloyd_if import DEEPFLOYD_IF
from kit.families.family import TinyFamily
from kit.families.flux import FLUX
from kit.families.flux2_klein import FLUX2_KLEIN
from kit.families.qwen_image import QWEN_IMAGE
from kit.families.sd3 import SD3
from kit.families.sdxl import SDXL
from kit.families.z_image import Z_IMAGE

FAMILIES: dict[str, TinyFamily] = {
    "sdxl": SDXL,
    "sd3": SD3,
    "flux": FLUX,
    "flux2_klein": FLUX2_KLEIN,
    "z_image": Z_IMAGE,
    "qwen_image": QWEN_IMAGE,
    "deepfloyd_if": DEEPFLOYD_IF,
}
