"""How a recipe draws and weights noise levels of bases that are trained by flow matching.

An absent field has the family's own value. The equations are in `dbray.bases.flow`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dbray.spec.base import Spec

Density = Literal["uniform", "logit_normal"]
"""Distribution of training timesteps: uniform, or more in the middle."""
Weighting = Literal["none", "image", "cosmap"]
"""Weights of errors: equal, as errors of the image, or a cosine map as in rectified flow."""


class Flow(Spec):
    """Settings of noise levels; absent ones are the family's."""

    density: Density | None = Field(
        default=None, description="How noise levels are drawn before the shift."
    )
    logit_mean: float | None = Field(
        default=None, ge=-10, le=10, description="Of logit_normal; absent: 0. Below: more noise."
    )
    logit_std: float | None = Field(
        default=None, gt=0, le=10, description="Of logit_normal; absent: 1."
    )
    shift: float | None = Field(
        default=None,
        gt=0,
        le=100,
        description="Shift of the drawn levels towards noise; 1: none. Absent: the base's own.",
    )
    weighting: Weighting | None = Field(
        default=None,
        description="How a level's error counts. none: alike. image: by the square of the level. "
        "cosmap: more in the middle.",
    )
