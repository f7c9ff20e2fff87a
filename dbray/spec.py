"""Everything a user writes, checked: Subject, Recipe, Prior, Previews, Resources, Job.

Owns every default and the meaning of every field; knows neither files' contents nor hardware.
Unknown keys are errors, because a misspelt key that silently means "the default" costs GPU hours.
Sources of the defaults: Ruiz et al. 2022 (arXiv 2208.12242), section 4 and supplementary material.
"""

from __future__ import annotations

import hashlib
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
)

from dbray.errors import Problem, SpecError
from dbray.texts import parse_yaml, problems_of, read_text

SCHEMA_VERSION = "dbray/v1"
SUBJECT_ID_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"
UNTOUCHED = "base"
"""Where a model is asked for: the untouched base. Hence no subject has this id."""
MAX_SAMPLING_STEPS = 999
"""A schedule has 1000 timesteps; one that leads by an offset of 1 has room for one step less."""

SubjectId = Annotated[str, Field(pattern=SUBJECT_ID_PATTERN)]
Sampler = Literal["ddpm", "euler_ancestral", "ddim", "dpm++"]

# The paper's kinds of prompts: recontextualisation, art rendition, accessory, and a last plain one
# that shows whether the class has drifted towards the subject.
DEFAULT_PREVIEW_PROMPTS = (
    "a photo of {subject} in the jungle",
    "a photo of {subject} on the beach",
    "a photo of {subject} in the snow",
    "a painting of {subject} in the style of Vincent van Gogh",
    "a photo of {subject} wearing a hat",
    "a {class}",
)


class Spec(BaseModel):
    """Base of all that crosses a file, HTTP or process edge."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def digest(self) -> str:
        """Hex SHA-256 of the canonical JSON of this value."""
        return digest_json(self.model_dump(mode="json"))


class Subject(Spec):
    """What to personalise for: a few photographs of one thing, and its class noun."""

    id: SubjectId = Field(description="Unique name; becomes the published model's id.")
    class_noun: str = Field(min_length=1, max_length=64, description='Coarse class, e.g. "dog".')
    images: tuple[str, ...] = Field(description="Paths or URIs of 3 to 6 photographs.")
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

    method: Literal["full"] = Field(
        default="full", description="full: every layer of the UNet is fine-tuned, as in the paper."
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
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="Compute precision; trained parameters keep float32 masters."
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


# The names of the branches become part of where pydantic finds an error; no key is called so.
_ADDRESS, _LIST = "an address", "a list of subjects"


def _branch_of(subjects: Any) -> str:
    return _ADDRESS if isinstance(subjects, str) else _LIST


# With a discriminator, a mistake in a subject is not also told as "should be a string".
Subjects = Annotated[
    Annotated[str, Tag(_ADDRESS)] | Annotated[tuple[Subject, ...], Tag(_LIST)],
    Discriminator(_branch_of),
]


class Job(Spec):
    """What the user asked for: subjects + base + recipe + prior + previews + storage."""

    schema_version: Literal["dbray/v1"] = Field(default=SCHEMA_VERSION, alias="schema")
    id: SubjectId = Field(
        default="job", description="Name of the job; default: the job file's stem."
    )
    base: str = Field(description="miniature, a diffusers folder, or a hub id.")
    base_revision: str | None = Field(
        default=None,
        description="Commit of a hub id, 40 hex digits; required for hub ids, so that results "
        "repeat.",
    )
    subjects: Subjects = Field(
        description="Manifest (.jsonl, .yaml, .csv), a folder with one folder per subject, "
        "or the subjects themselves."
    )
    storage: str = Field(
        default="runs", description="Folder or URI (s3://, gs://, ...) of all results."
    )
    tenant: str | None = Field(
        default=None,
        pattern=SUBJECT_ID_PATTERN,
        description="Owner of the models, where several tenants share one registry; absent: "
        "everybody may see them.",
    )
    recipe: Recipe = Recipe()
    prior: Prior = Prior()
    previews: Previews = Previews()
    identifiers: Identifiers = Identifiers()
    resources: Resources = Resources()

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @field_validator("base_revision")
    @classmethod
    def _pinned(cls, revision: str | None) -> str | None:
        if revision is not None and not is_commit(revision):
            raise ValueError("a revision is the 40 hex digits of a commit: branches and tags move")
        return revision

    @classmethod
    def load(cls, path: str | Path) -> Job:
        """Read a job file (YAML). Paths in it are relative to the file.

        Raises:
            SpecError: with every mistake in the file, its line and a fix.
        """
        file = Path(path)
        return parse_job(read_text(file), file)


def parse_job(text: str, file: Path) -> Job:
    """Parse the text of a job file that lies at `file`. Raises SpecError with every mistake."""
    job, problems = draft_job(text, file)
    if problems:
        raise SpecError(problems)
    return job


def draft_job(text: str, file: Path) -> tuple[Job, list[Problem]]:
    """Parse a job file as far as it goes, so that the rest can be checked beside its mistakes.

    Returns:
        The job without what is wrong in it (its base is "" if that is), and every mistake.

    Raises:
        SpecError: it is no YAML, or no mapping.
    """
    data, lines = parse_yaml(text, file)
    if not isinstance(data, dict):
        raise SpecError([Problem("error", str(file), "is not a mapping of keys to values",
                                 "write 'base: ...', 'subjects: ...' and so on")])  # fmt: skip
    data.setdefault("id", slug(file.stem))
    try:
        job, problems = Job.model_validate(data), []
    except ValidationError as exc:
        job, problems = _without_mistakes(data, exc), problems_of(exc, str(file), lines)
    return job.model_copy(update=_absolute_paths(job, file.resolve().parent)), problems


def _without_mistakes(data: dict[str, Any], exc: ValidationError) -> Job:
    """Leave out the keys, and of the subjects those, that have errors."""
    places = [error["loc"] for error in exc.errors()]
    wrong = {place[0] for place in places}
    kept = {key: data[key] for key in Job.model_fields if key in data and key not in wrong}
    if "subjects" not in kept:
        indices = {place[2] for place in places if place[:2] == ("subjects", _LIST)
                   and len(place) > 2}  # fmt: skip
        listed = data.get("subjects") if indices else ()
        kept["subjects"] = [raw for i, raw in enumerate(listed or ()) if i not in indices]
    job = Job.model_validate({"base": "left out"} | kept)
    return job if "base" in kept else job.model_copy(update={"base": ""})


def _absolute_paths(job: Job, folder: Path) -> dict[str, Any]:
    """Anchor the relative paths of a job file at its folder."""
    anchored: dict[str, Any] = {"storage": anchor(job.storage, folder)}
    if isinstance(job.subjects, str):
        anchored["subjects"] = anchor(job.subjects, folder)
    else:
        anchored["subjects"] = tuple(
            one.model_copy(update={"images": tuple(anchor(i, folder) for i in one.images)})
            for one in job.subjects
        )
    if job.base.startswith((".", "~")) or (job.base and (folder / job.base).is_dir()):
        anchored["base"] = anchor(job.base, folder)
    return anchored


def anchor(path: str, folder: Path) -> str:
    """Make a local path absolute, relative to `folder`; URIs pass unchanged."""
    if "://" in path:
        return path
    return str((folder / Path(path).expanduser()).resolve())


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
    """Turn any text into a valid id: lower case, other characters become '-'."""
    kept = "".join(char if (char.isascii() and char.isalnum()) or char in "._-" else "-"
                   for char in text.lower())  # fmt: skip
    return kept.strip("._-")[:63] or "unnamed"


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
