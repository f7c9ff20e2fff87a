"""The section of a job that says what it may use."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from dbray.spec.base import Spec

Device = Literal["auto", "cpu", "cuda"]
"""The kind of device that work asks the cluster for; auto: cuda if it has a GPU now."""


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
        description="A lane that is silent this long loses its subjects to others.",
    )

    @property
    def num_slots(self) -> int:
        """Subjects that a lane trains together; 1 while their number is not chosen."""
        return 1 if self.pack == "auto" else self.pack

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
