"""What a job is made of, checked: Subject, Recipe, Prior, Previews, Identifiers, Resources.

Owns their defaults and the meaning of their fields; knows neither files' contents nor hardware.
Unknown keys are errors, because a misspelt key that silently means "the default" costs GPU hours.
Sources of the defaults: Ruiz et al. 2022 (arXiv 2208.12242), section 4 and supplementary material.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, field_validator

from dbray.errors import SpecError
from dbray.spec.base import Spec
from dbray.spec.findings import Item, problems_of
from dbray.spec.methods import Full, Method

SUBJECT_ID_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"
MINIATURE = "miniature"
"""The base that comes with dbray."""
UNTOUCHED = "base"
"""Where a model is asked for: the untouched base. Hence no subject has this id."""
MAX_SAMPLING_STEPS = 999
"""A schedule has 1000 timesteps; one that leads by an offset of 1 has room for one step less."""

SubjectId = Annotated[str, Field(pattern=SUBJECT_ID_PATTERN)]
Sampler = Literal["ddpm", "euler_ancestral", "ddim", "dpm++"]
Prediction = Literal["epsilon", "v_prediction"]
"""What a denoiser answers: the noise, or v (Salimans and Ho 2022)."""
Precision = Literal["fp32", "bf16"]
"""What is computed in."""
Device = Literal["auto", "cpu", "cuda"]
"""What work asks the cluster for; auto: cuda where it has a GPU now."""

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


def is_address(value: Any) -> bool:
    """Whether a value may stand for a path or URI, be there something or not."""
    return (
        isinstance(value, str)
        and bool(value.strip())
        and not any(ord(char) < 32 or "\ud800" <= char <= "\udfff" for char in value)
    )


def _check_address(address: str) -> str:
    if not is_address(address):
        raise ValueError("is no path or address: it is empty, or holds control characters")
    return address


Address = Annotated[str, AfterValidator(_check_address)]
"""A local path or a URI."""


class Subject(Spec):
    """What to personalise for: a few photographs of one thing, and its class noun."""

    id: SubjectId = Field(description="Unique name; becomes the published model's id.")
    class_noun: str = Field(min_length=1, max_length=64, description='Coarse class, e.g. "dog".')
    images: tuple[Address, ...] = Field(
        description="Paths or URIs of 3 to 6 photographs, or the path of a folder of them on this "
        "machine."
    )
    identifier: str | None = Field(
        default=None,
        description="Rare token(s) to bind; found by dbray when absent.",
        max_length=64,
    )
    captions: tuple[str, ...] | None = Field(
        default=None,
        description="One prompt per image, with {subject} for '[identifier] [class noun]'. "
        'Absent: "a {subject}" for every image, as in the paper.',
    )

    @field_validator("id")
    @classmethod
    def _not_reserved(cls, subject_id: str) -> str:
        if subject_id == UNTOUCHED:
            raise ValueError(f"{UNTOUCHED!r} names the untouched base; give another id")
        return subject_id

    @field_validator("class_noun")
    @classmethod
    def _plain_noun(cls, noun: str) -> str:
        cleaned = " ".join(noun.split())
        if not cleaned or any(not char.isprintable() or char in "{}" for char in cleaned):
            raise ValueError("a class noun is one or more plain words, such as 'dog'")
        return cleaned


class Recipe(Spec):
    """How to fine-tune; part of every fingerprint."""

    first_fields = frozenset({
        "method", "steps", "batch_size", "learning_rate", "weight_decay", "max_grad_norm",
        "prior_weight", "train_text_encoder", "min_snr_gamma", "ema_decay",
        "gradient_checkpointing", "precision", "publish_precision", "resolution", "flip", "crop",
        "seed",
    })  # fmt: skip

    method: Method = Field(
        default=Full(),
        description="What is trained; its settings, if any, under it, beside `kind`. full: every "
        "layer of the denoiser, as in the paper.",
    )
    steps: int = Field(default=800, ge=1, le=100_000, description="Optimiser steps.")
    batch_size: int = Field(
        default=1, ge=1, le=64, description="Instance rows per step; as many class rows are added."
    )
    learning_rate: float = Field(
        default=5e-6, gt=0, le=1, description="Constant AdamW learning rate."
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
    resolution: int | None = Field(
        default=None, ge=32, le=2048, multiple_of=8, description="Pixels; absent: the base's own."
    )
    flip: bool = Field(
        default=False,
        description="Mirror instance images at random; wrong for things with writing.",
    )
    crop: Literal["centre", "random"] = Field(
        default="centre",
        description="How images that are not square are cut, drawn per step if random.",
    )
    seed: int = Field(
        default=0, ge=0, lt=2**63, description="Root of every random number of training."
    )


class Prior(Spec):
    """How the class images of the prior-preservation loss are sampled from the frozen base."""

    first_fields = frozenset({"count", "prompt", "sampler", "steps", "guidance", "seed"})

    count: int = Field(default=200, ge=1, le=10_000, description="Class images per class noun.")
    prompt: str = Field(default="a {class}", description='The paper\'s "a [class noun]".')
    sampler: Sampler = Field(default="ddpm", description="The paper uses an ancestral sampler.")
    steps: int = Field(
        default=50, ge=1, le=MAX_SAMPLING_STEPS, description="Sampling steps per image."
    )
    guidance: float = Field(default=7.5, ge=1, le=50, description="Classifier-free guidance scale.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Image i is sampled from (seed, i).")

    @field_validator("prompt")
    @classmethod
    def _names_the_class(cls, prompt: str) -> str:
        return check_template(prompt, required="{class}", allowed=("{class}",))


class Previews(Spec):
    """What is sampled for every subject after training, and for the base beside it."""

    prompts: tuple[str, ...] = Field(
        default=DEFAULT_PREVIEW_PROMPTS,
        description="{subject} is '[identifier] [class noun]', {class} the class noun.",
    )
    sampler: Sampler = Field(default="ddim", description="Sampler of the previews.")
    steps: int = Field(
        default=50, ge=1, le=MAX_SAMPLING_STEPS, description="Sampling steps per preview."
    )
    guidance: float = Field(default=7.5, ge=1, le=50, description="Classifier-free guidance scale.")
    seed: int = Field(
        default=0, ge=0, lt=2**63, description="The same for the subject and the base."
    )

    @field_validator("prompts")
    @classmethod
    def _known_placeholders(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_template(p, allowed=("{subject}", "{class}")) for p in prompts)


class Identifiers(Spec):
    """Where identifiers are looked for in the base's vocabulary (paper, section 3.2)."""

    rank_range: tuple[int, int] | None = Field(
        default=None,
        description="Token ids to choose from, first included, last not. Absent: for a large "
        "vocabulary the paper's [5000, 10000), else all of it.",
    )
    num_tokens: int | None = Field(
        default=None,
        ge=1,
        le=3,
        description="Tokens per identifier (k); absent: the fewest that give each subject its own.",
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="Root of the draw.")


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
        description="0: plain torch. 1 to 3: DeepSpeed ZeRO, where a base's training state (master "
        "weights, gradients, optimiser) does not fit one GPU; the base itself has to.",
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


def subject_fields(item: Item) -> dict[str, Any]:
    """The fields of a listed subject, under their own names and in their full form.

    Raises:
        SpecError: it is no mapping.
    """
    if not isinstance(item.value, dict):
        fix = "write a mapping with 'id', 'class_noun' and 'images'"
        raise SpecError.of(item.where, "is no subject", fix)
    fields = dict(item.value)
    if "subject_id" in fields and "id" not in fields:
        fields["id"] = fields.pop("subject_id")
    if isinstance(fields.get("images"), str):
        fields["images"] = [fields["images"]]
    return fields


def make_subject(fields: dict[str, Any], item: Item) -> Subject:
    """Make a subject of the fields of an item. Raises SpecError with every mistake in them."""
    try:
        return Subject.model_validate(fields)
    except ValidationError as exc:
        name = fields["id"] if isinstance(fields.get("id"), str) else None
        problems = problems_of(exc, item.file, item.lines, Subject)
        raise SpecError(replace(one, subject=name) for one in problems) from exc


def anchor(path: str, folder: Path) -> str:
    """Make a local path absolute, relative to `folder`; URIs pass unchanged."""
    if "://" in path:
        return path
    local = Path(path)
    with suppress(RuntimeError):  # '~nobody/x' stays, and will be told not to exist
        local = local.expanduser()
    return os.path.realpath(folder / local)


def anchor_base(base: str, folder: Path) -> str:
    """Make a base that is a folder absolute; the miniature's name and hub ids pass unchanged."""
    anchored = anchor(base, folder)
    is_path = base.startswith((".", "~")) or (base != "" and is_folder(anchored))
    return anchored if is_path and base != MINIATURE else base


def is_folder(path: str | Path) -> bool:
    """Whether a folder is there. Unlike Path.is_dir, it raises for no path."""
    return os.path.isdir(path)  # noqa: PTH112


def check_template(prompt: str, allowed: tuple[str, ...], required: str | None = None) -> str:
    """Return `prompt` if its only placeholders are the allowed ones. Raises ValueError."""
    rest = prompt
    for placeholder in allowed:
        rest = rest.replace(placeholder, "")
    if "{" in rest or "}" in rest:
        raise ValueError(f"{prompt!r} has a placeholder other than {', '.join(allowed)}")
    if required and required not in prompt:
        raise ValueError(f"{prompt!r} does not contain {required}")
    return prompt


def fill_prompt(prompt: str, class_noun: str, identifier: str | None = None) -> str:
    """Fill {subject} with '[identifier] [class noun]' and {class} with the class noun.

    Without an identifier (the untouched base), {subject} is the class noun.
    """
    subject = f"{identifier} {class_noun}" if identifier else class_noun
    return prompt.replace("{subject}", subject).replace("{class}", class_noun)


def is_commit(revision: str) -> bool:
    """Whether this names a commit in full, and so the same files for ever."""
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def slug(text: str) -> str:
    """Turn a text into an id: lower case, other characters become '-'; "" if none is left."""
    kept = "".join(char if (char.isascii() and char.isalnum()) or char in "._-" else "-"
                   for char in text.lower())  # fmt: skip
    return kept.strip("._-")[:63]


def utc_now() -> str:
    """The present time as every file of dbray tells it: ISO 8601, UTC, in seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_utc(text: str) -> float:
    """Read what `utc_now` wrote. Returns seconds since the epoch."""
    return datetime.fromisoformat(text).timestamp()


def digest_json(value: Any) -> str:
    """Hex SHA-256 of the canonical JSON (sorted keys, no spaces) of a value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
