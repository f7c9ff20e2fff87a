"""The sections of a job: Recipe, Prior, Previews, Scoring, Identifiers, Resources.

Owns their defaults and the meaning of their fields. Reads no files and does not look at hardware.
Unknown keys are errors, because a misspelt key that silently means "the default" costs GPU hours.
Sources of the defaults: Ruiz et al. 2022 (arXiv 2208.12242), section 4 and supplementary material.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from dbray.spec.base import Spec
from dbray.spec.flow import Flow
from dbray.spec.methods import Full, Method
from dbray.spec.presets import PRESETS, check_preset
from dbray.spec.prompts import check_template
from dbray.spec.stop import Stop
from dbray.spec.suites import expand_suites

MAX_SAMPLING_STEPS = 999
"""A schedule has 1000 timesteps; leading spacing with offset 1 has room for one step less."""

Sampler = Literal["ddpm", "euler_ancestral", "ddim", "dpm++", "euler"]
"""Of all families together; each has some of them."""
Prediction = Literal["epsilon", "v_prediction"]
"""What a denoiser predicts: the noise, or v (Salimans and Ho 2022)."""
Precision = Literal["fp32", "bf16"]
"""The dtype of computation."""
RateSchedule = Literal["constant", "linear", "cosine"]
"""The shape of a learning rate after the warm-up."""
Device = Literal["auto", "cpu", "cuda"]
"""The kind of device that work asks the cluster for; auto: cuda if it has a GPU now."""

# The paper's kinds of prompts: recontextualisation, art rendition, accessory, and a last plain one
# that shows whether the class has drifted towards the subject.
DEFAULT_PREVIEW_PROMPTS = (
    "a photo of a {subject} in the jungle",
    "a photo of a {subject} on the beach",
    "a photo of a {subject} in the snow",
    "a painting of a {subject} in the style of Vincent van Gogh",
    "a photo of a {subject} wearing a hat",
    "a {class}",
)
DEFAULT_SCORED_PROMPTS = (
    "a photo of a {subject} in the jungle",
    "a photo of a {subject} on the beach",
    "a photo of a {subject} in the snow",
    "a photo of a {subject} in the city",
)
DEFAULT_CLASS_PROMPTS = ("a photo of a {class}", "a photo of a car in the city")


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
        return preset and check_preset(preset)

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
        return check_template(prompt, required="{subject}", allowed=("{subject}", "{class}"))


_TAUGHT = {"kind", "prompt"}
"""Fields of a prior that matter to a teacher."""


class Prior(Spec):
    """How the class is kept: by class images, sampled as said here, or by the base as teacher."""

    first_fields = frozenset({"count", "prompt", "sampler", "steps", "guidance", "seed"})

    kind: Literal["images", "teacher"] = Field(
        default="images",
        description="images: class images, sampled from the base once per class noun, as in the "
        "paper. teacher: no class images; what the untouched base predicts for the class prompt on "
        "the subject's noisy photographs is what it must go on predicting.",
    )
    count: int = Field(
        default=200,
        ge=1,
        le=10_000,
        description="Class images per class noun; where it is raised, only new ones are sampled.",
    )
    prompt: str = Field(
        default="a {class}",
        description='The paper\'s "a [class noun]"; "an" before the sound of a vowel.',
    )
    sampler: Sampler = Field(
        default="ddpm",
        description="The paper uses an ancestral sampler. Bases trained by flow matching have "
        "euler alone, which is their default.",
    )
    steps: int = Field(
        default=50, ge=1, le=MAX_SAMPLING_STEPS, description="Sampling steps per image."
    )
    guidance: float = Field(default=7.5, ge=1, le=50, description="Classifier-free guidance scale.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Image i is sampled from (seed, i).")

    @property
    def makes_images(self) -> bool:
        """Whether class images are sampled."""
        return self.kind == "images"

    def identity(self) -> Any:
        """See Spec; of a teacher nothing but the prompt decides anything."""
        return super().identity() if self.makes_images else self.model_dump(include=_TAUGHT)

    @field_validator("prompt")
    @classmethod
    def _names_the_class(cls, prompt: str) -> str:
        return check_template(prompt, required="{class}", allowed=("{class}",))


class Previews(Spec):
    """What is sampled for every subject after training, and for the base beside it."""

    prompts: tuple[str, ...] = Field(
        default=DEFAULT_PREVIEW_PROMPTS,
        description="{subject} is '[identifier] [class noun]', {class} the class noun. Names of "
        "suites, which 'dbray prompts' lists, stand for their prompts.",
    )
    sampler: Sampler = Field(default="ddim", description="Sampler of the previews.")
    steps: int = Field(
        default=50, ge=1, le=MAX_SAMPLING_STEPS, description="Sampling steps per preview."
    )
    guidance: float = Field(default=7.5, ge=1, le=50, description="Classifier-free guidance scale.")
    seed: int = Field(
        default=0, ge=0, lt=2**63, description="The same for the subject and the base."
    )

    @field_validator("prompts", mode="before")
    @classmethod
    def _named_suites(cls, prompts: Any) -> Any:
        return expand_suites(prompts)

    @field_validator("prompts")
    @classmethod
    def _known_placeholders(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_template(p, allowed=("{subject}", "{class}")) for p in prompts)


class Scoring(Spec):
    """How published models are scored. Images are sampled as the previews are."""

    embedder: str | None = Field(
        default=None,
        description="Embedder that compares images with photographs: miniature-vit, a folder, or "
        "a hub id such as facebook/dinov2-base. Absent: no scores.",
    )
    embedder_revision: str | None = Field(default=None, description="Commit of a hub id.")
    clip: str | None = Field(
        default=None,
        description="CLIP that compares images with prompts: miniature-clip, a folder, or a hub "
        "id such as openai/clip-vit-base-patch32. Absent: no prompt scores.",
    )
    clip_revision: str | None = Field(default=None, description="Commit of a hub id.")
    prompts: tuple[str, ...] = Field(
        default=DEFAULT_SCORED_PROMPTS,
        min_length=1,
        description="Prompts of the subject: {subject} is '[identifier] [class noun]'. Names of "
        "suites, which 'dbray prompts' lists, stand for their prompts.",
    )
    class_prompts: tuple[str, ...] = Field(
        default=DEFAULT_CLASS_PROMPTS,
        min_length=1,
        description="Prompts without the subject, to see how far the model has moved from the "
        "base: of its class noun, {class}, and of other things. At least one has {class}.",
    )
    perceptual: bool = Field(
        default=False,
        description="Also measure diversity by ST-LPIPS, a perceptual distance for photographs; "
        "needs dbray[perceptual].",
    )
    images: int = Field(default=4, ge=2, le=64, description="Images of each prompt.")
    seed: int = Field(
        default=0, ge=0, lt=2**63, description="The same for all models and for the base."
    )

    @field_validator("prompts", mode="before")
    @classmethod
    def _named_suites(cls, prompts: Any) -> Any:
        return expand_suites(prompts)

    @field_validator("prompts")
    @classmethod
    def _name_the_subject(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        allowed = ("{subject}", "{class}")
        return tuple(check_template(p, required="{subject}", allowed=allowed) for p in prompts)

    @field_validator("class_prompts")
    @classmethod
    def _leave_out_the_subject(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        if not any("{class}" in prompt for prompt in prompts):
            raise ValueError("no prompt contains {class}; 'a photo of a {class}' shows whether the "
                             "class is kept")  # fmt: skip
        return tuple(check_template(p, allowed=("{class}",)) for p in prompts)


class Identifiers(Spec):
    """Where identifiers are looked for in the base's vocabulary (paper, section 3.2)."""

    rank_range: tuple[int, int] | None = Field(
        default=None,
        description="Token ids to choose from, first included, last not. Absent: of a large "
        "vocabulary of byte pairs, as CLIP's, the last fifth; of another large one the paper's "
        "[5000, 10000); else all of it.",
    )
    num_tokens: int | None = Field(
        default=None,
        ge=1,
        le=3,
        description="Tokens per identifier (k); absent: the fewest that give each subject its own.",
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="Root of the draw.")


def _check_pack(pack: Any) -> Any:
    """Reject what is neither, in one message."""
    is_number = isinstance(pack, int) and not isinstance(pack, bool)
    if pack != "auto" and not (is_number and 1 <= pack <= MAX_PACK):
        raise ValueError(f"neither auto nor a number from 1 to {MAX_PACK}")
    return pack


MAX_PACK = 64
Pack = Annotated[
    Annotated[int, Field(ge=1, le=MAX_PACK)] | Literal["auto"], BeforeValidator(_check_pack)
]
"""Subjects that a lane trains together."""


class Resources(Spec):
    """What the job may use. Nothing here changes the recipe."""

    device: Device = Field(
        default="auto",
        description="auto: cuda where the cluster has a GPU now. On a cluster that grows, name it, "
        "with lanes and prior_actors: cuda waits for GPUs that are not up yet.",
    )
    lanes: int | None = Field(
        default=None,
        ge=1,
        description="Subjects trained at once; absent: as many as the cluster holds.",
    )
    gpus_per_subject: int = Field(
        default=1,
        ge=1,
        le=64,
        description="World size of a lane (worker processes where no GPU is).",
    )
    threads_per_worker: int = Field(
        default=1, ge=1, le=256, description="CPU threads of each worker; fixed, so results repeat."
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        default=0,
        description="0: plain torch. 1 to 3: DeepSpeed ZeRO, which divides among the lane's GPUs "
        "the optimiser (1), also gradients (2), also all weights, the frozen ones too (3).",
    )
    offload: Literal["optimiser"] | None = Field(
        default=None,
        description="optimiser: keep master weights and Adam's moments in CPU memory, and update "
        "there: less GPU memory, slower steps. Needs zero_stage 1, 2 or 3.",
    )
    compile: bool = Field(
        default=False,
        description="Compile the training step, once for all subjects of a lane: minutes at the "
        "start of a lane, faster steps after them. Rounds otherwise, as another GPU does. Not with "
        "zero_stage 3.",
    )
    pack: Pack = Field(
        default=1,
        description="Subjects that a lane trains together in one batch, each in a slot of its own: "
        "faster wherever the rows of one leave a device partly idle. auto: as many as still make "
        "it faster here, measured once per job. For every method but full, on one device.",
    )
    prior_actors: int | None = Field(
        default=None, ge=1, description="Sampling actors; absent: one per GPU, or per free CPU."
    )
    checkpoint_every: int | None = Field(
        default=None,
        ge=1,
        description="Steps between checkpoints of a subject in flight; absent: none.",
    )
    max_attempts: int = Field(
        default=3, ge=1, le=20, description="Tries of a subject, when retryable."
    )
    max_lane_failures: int = Field(
        default=3, ge=0, description="Deaths of a lane before it is given up."
    )
    lease_seconds: float = Field(
        default=300.0,
        gt=0,
        description="A lane that is silent this long loses its subject to another.",
    )

    @model_validator(mode="after")
    def _fit_each_other(self) -> Resources:
        if self.offload and not self.zero_stage:
            raise ValueError("offload: only DeepSpeed can move the optimiser; set zero_stage to 1, "
                             "2 or 3, or leave out offload")  # fmt: skip
        if self.offload and self.device == "cpu":
            raise ValueError("offload: with device: cpu all is in CPU memory; leave out offload")
        if self.compile and self.zero_stage == 3:
            raise ValueError("compile: zero_stage 3 fetches the weights of each layer when it is "
                             "called, which cannot be compiled; leave out compile")  # fmt: skip
        return self
