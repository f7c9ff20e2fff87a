"""The section of a job that says how to fine-tune.

Sources of the defaults: Ruiz et al. 2022 (arXiv 2208.12242), section 4 and supplementary material.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from dbray.spec.base import Spec
from dbray.spec.flow import Flow
from dbray.spec.methods import Full, Method
from dbray.spec.presets import PRESETS, check_preset
from dbray.spec.prompts import check_subject_prompt
from dbray.spec.stop import Stop

Prediction = Literal["epsilon", "v_prediction"]
"""What a denoiser predicts: the noise, or v (Salimans and Ho 2022)."""


Precision = Literal["fp32", "bf16"]
"""The dtype of computation."""


RateSchedule = Literal["constant", "linear", "cosine"]
"""The shape of a learning rate after the warm-up."""


class Recipe(Spec):
    """How to fine-tune; part of every fingerprint."""

    first_fields = frozenset({
        "method", "steps", "batch_size", "learning_rate", "weight_decay", "max_grad_norm",
        "prior_weight", "train_text_encoder", "min_snr_gamma", "ema_decay",
        "gradient_checkpointing", "precision", "publish_precision", "resolution", "flip", "crop",
        "seed",
    })  # fmt: skip

    preset: str | None = Field(
        default=None,
        description="Take the values that are left out from a recipe by name: paper, "
        "stable-diffusion, hackathon, campus, or a method's name for the family's own.",
    )
    method: Method = Field(
        default=Full(),
        description="What is trained; its settings, if any, under it, beside `kind`. full: every "
        "layer of the denoiser, as in the paper. lora: low-rank factors, 100 times smaller. "
        "textual_inversion: the embeddings of the identifier alone. pivotal: lora and those.",
    )
    steps: int = Field(default=800, ge=1, le=100_000, description="Optimiser steps.")
    batch_size: int = Field(
        default=1, ge=1, le=64, description="Instance rows per step; as many class rows are added."
    )
    learning_rate: float = Field(default=5e-6, gt=0, le=1, description="AdamW learning rate.")
    rate_schedule: RateSchedule = Field(
        default="constant",
        description="The learning rate after the warm-up: constant, or falling to 0 at the last "
        "step along a line or half a cosine.",
    )
    warmup_steps: int = Field(
        default=0,
        ge=0,
        le=100_000,
        description="Steps over which all learning rates rise linearly from near 0.",
    )
    identifier_rate: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Also learn the embeddings of the identifier's tokens, at this rate, which "
        "falls to 0 after the warm-up, along a line, or half a cosine if rate_schedule is cosine. "
        "0.03 works on the miniature. All others stay as they are.",
    )
    weight_decay: float = Field(
        default=1e-2, ge=0, le=1, description="AdamW decoupled weight decay."
    )
    max_grad_norm: float = Field(
        default=1.0, gt=0, description="Gradients are clipped to this norm."
    )
    prior_weight: float = Field(
        default=1.0, ge=0, description="Lambda of equation 2. 0 trains without prior preservation."
    )
    train_text_encoder: bool = Field(default=False, description="Also fine-tune the text encoder.")
    min_snr_gamma: float | None = Field(
        default=None, gt=0, description="Min-SNR loss weighting (Hang et al. 2023); 5 is usual."
    )
    huber_c: float | None = Field(
        default=None,
        gt=0,
        le=100,
        description="Huber loss: errors far above this constant count by their size instead of "
        "their square; kohya's default is 0.1. Absent: squared errors.",
    )
    noise_offset: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Add noise to the mean of each channel, so that very dark and very bright "
        "images can be learnt; 0.05 to 0.1 is usual. Not for bases trained by flow matching.",
    )
    flow: Flow = Field(
        default=Flow(),
        description="Which noise levels training draws, and how they count: for bases trained by "
        "flow matching.",
    )
    ema_decay: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Publish an exponential moving average of the weights.",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Recompute activations: less memory, about a quarter more time."
    )
    precision: Precision = Field(
        default="fp32",
        description="Compute precision; fp32 is TF32 on GPUs that have it. Trained parameters keep "
        "float32 masters.",
    )
    publish_precision: Literal["fp32", "fp16"] = Field(
        default="fp16", description="Precision of the published weights."
    )
    prompt: str = Field(
        default="a {subject}",
        description="Prompt of photographs without captions; {subject} is '[identifier] [class "
        "noun]'. Choose prior.prompt alike.",
    )
    resolution: int | None = Field(
        default=None, ge=32, le=2048, multiple_of=8, description="Pixels; absent: the base's own."
    )
    flip: bool = Field(
        default=False,
        description="Mirror instance images at random; wrong for things with writing.",
    )
    crop: Literal["centre", "random", "bucket"] = Field(
        default="centre",
        description="How images that are not square are cut. centre: to the square in the middle. "
        "random: to one of three squares, drawn per step. bucket: not to squares, but to the "
        "nearest aspect of about the same area; class images stay square.",
    )
    stop: Stop | None = Field(
        default=None,
        description="Stop when the subject is learnt, and publish the best checkpoint; `steps` are "
        "then the most. Needs scoring.embedder. Absent: take all steps.",
    )
    seed: int = Field(
        default=0, ge=0, lt=2**63, description="Root of every random number of training."
    )

    @field_validator("preset")
    @classmethod
    def _known_preset(cls, preset: str | None) -> str | None:
        return None if preset is None else check_preset(preset)

    @model_validator(mode="after")
    def _preset_is_of_the_method(self) -> Self:
        """A rate of one method is not a rate of another."""
        if self.preset is not None and "method" in self.model_fields_set:
            kind = PRESETS[self.preset].recipe["method"]
            if self.method.kind != kind:
                raise ValueError(f"preset {self.preset} is of the method {kind}, and method is "
                                 f"{self.method.kind}: leave one of the two out")  # fmt: skip
        return self

    @field_validator("prompt")
    @classmethod
    def _names_the_subject(cls, prompt: str) -> str:
        return check_subject_prompt(prompt)
