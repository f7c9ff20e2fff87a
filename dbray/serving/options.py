"""The options of serving: the `args` of a Serve configuration, and of `launch`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dbray.spec.base import Spec
from dbray.spec.canon import SUBJECT_ID_PATTERN
from dbray.spec.resources import Device
from dbray.spec.super_resolution import Enlargement

GIB = 2**30


class ServeOptions(Spec):
    """Arguments of `dbray.serving:build`."""

    registry: str = Field(description="Folder or URI of the results of jobs (their `storage`).")
    base: str | None = Field(
        None, description="Base model; absent: that of the registry's first model."
    )
    base_revision: str | None = Field(None, description="Commit of a base from the hub.")
    super_resolution: str | Enlargement | None = Field(
        None,
        description="The network that enlarges the base's images: a folder or a hub id, or a "
        "section as in a job, where `then` names a third. Absent: that of a base which is a "
        "cascade or, without a base, those of the registry's first model. A model that names a "
        "third is enlarged by it only if it is here.",
    )
    super_resolution_revision: str | None = Field(None, description="Commit, from the hub.")
    keys: str | None = Field(
        None, description="Key file; absent: open access, for requests from the same machine only."
    )
    device: Device = Field("auto", description="auto: cuda where the cluster has a GPU now.")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="Compute precision.")
    threads: int = Field(1, ge=1, le=256, description="CPU threads of each replica.")
    num_replicas: int = Field(1, ge=1, le=1000, description="Replicas, where not autoscaled.")
    min_replicas: int | None = Field(None, ge=0, description="Set to scale; 0: from zero.")
    max_replicas: int = Field(4, ge=1, le=1000, description="Most replicas, where autoscaled.")
    num_ingress: int = Field(1, ge=1, le=100, description="HTTP ingress replicas.")

    disk_gib: float = Field(50.0, gt=0, description="Local copies, per replica of a remote store.")
    ram_gib: float = Field(
        4.0,
        gt=0,
        description="Weights in RAM as published, per replica; up to as much again (at least two "
        "models) while others are loaded or used.",
    )
    device_gib: float = Field(
        2.0, gt=0, description="Weights in the compute precision on the device, per replica."
    )
    scratch: str | None = Field(None, description="Folder of local copies; absent: temporary.")

    batch_images: int = Field(4, ge=1, le=256, description="Images sampled together.")
    mix: bool = Field(
        True, description="Sample images of several low-rank models together; false: of one."
    )
    max_queued_images: int = Field(
        64, ge=1, description="Queued with a request, per replica; more gets 503."
    )
    max_tenant_images: int = Field(32, ge=1, description="Per replica and tenant; more gets 429.")
    patience_seconds: float = Field(
        2.0,
        ge=0,
        description="Longest wait for other weights while there are requests for the present ones.",
    )
    deadline_seconds: float = Field(60.0, gt=0, description="A request fails after this time.")
    drain_seconds: float = Field(30.0, ge=0, description="Time for requests in flight at the end.")
    max_steps: int = Field(150, ge=1, le=1000, description="Most sampling steps of a request.")
    max_body_kib: int = Field(64, ge=1, description="Larger request bodies get 413.")
    body_seconds: float = Field(10.0, gt=0, description="Time for a request body to arrive.")
    max_requests: int = Field(512, ge=1, description="In flight per ingress; more gets 503.")
    tenant_share: float = Field(
        0.5, gt=0, le=1, description="Part of max_requests for one tenant; more gets 429."
    )
    aliases: dict[Annotated[str, Field(pattern=SUBJECT_ID_PATTERN)], str] = Field(
        default_factory=dict,
        description="Names that requests may use for models, such as dall-e-3: rex.",
    )
    public_url: str | None = Field(
        None,
        pattern=r"^https?://[^/]+$",
        description="Address that callers know, for image URLs; absent: the request's Host header.",
    )
    fresh_seconds: float = Field(
        0.0,
        ge=0,
        description="Age limit of what is known of the registry; 0: read for each request.",
    )
    sweep_seconds: float = Field(
        10.0, gt=0, description="How often replicas drop what was removed from the registry."
    )

    @property
    def stage(self) -> Enlargement | None:
        """The stages after the first, where the options name them."""
        if not isinstance(self.super_resolution, str):
            return self.super_resolution
        revision = self.super_resolution_revision
        return Enlargement(base=self.super_resolution, base_revision=revision)
