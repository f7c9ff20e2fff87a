"""The record of a published model: what it is and how it was made.

Owns the format of model.json, and what can be read from a revision that was found. Does not know
where revisions are stored: see dbray.records.models.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from dbray.spec.base import Spec
from dbray.spec.canon import SubjectId
from dbray.spec.recipe import Recipe
from dbray.spec.sections import Prior
from dbray.spec.super_resolution import SuperResolution
from dbray.storage.committed import Committed

REVISION_LENGTH = 12
REVISION_PATTERN = rf"^[0-9a-f]{{{REVISION_LENGTH}}}$"


class ModelRecord(Spec):
    """What a published model is and how it was made: model.json."""

    id: SubjectId = Field(description="The subject's id.")
    revision: str = Field(pattern=REVISION_PATTERN, description="Start of the fingerprint.")
    fingerprint: str = Field(
        pattern=r"^[0-9a-f]{64}$", description="SHA-256 of everything that determines the weights."
    )
    class_noun: str = Field(description="Coarse class of the subject.")
    ablation: str | None = Field(
        default=None, description="What was wrong with the class noun on purpose."
    )
    identifier: str = Field(description="Rare token(s) bound to the subject.")
    base: str = Field(description="Name of the base model.")
    base_revision: str | None = Field(default=None, description="Commit of a base from the hub.")
    base_digest: str = Field(description="SHA-256 over the base's weight files.")
    serve_base: str | None = Field(
        default=None, description="Name of the base that serves it, if that is another one."
    )
    serve_base_revision: str | None = Field(
        default=None, description="Commit of that base, if it is from the hub."
    )
    serve_base_digest: str | None = Field(
        default=None, description="SHA-256 over that base's weight files."
    )
    recipe: Recipe = Field(description="How it was fine-tuned.")
    super_resolution: SuperResolution | None = Field(
        default=None, description="The second stage of a cascade, and how it was fine-tuned."
    )
    super_resolution_digest: str | None = Field(
        default=None, description="SHA-256 over the weight files of the second stage's base."
    )
    prior: Prior = Field(description="How the class was kept.")
    prior_digest: str | None = Field(description="The PriorSet; none without class images.")
    super_resolution_prior_digest: str | None = Field(
        default=None, description="The same images enlarged, by which the second stage is kept."
    )
    seed: int = Field(description="Root of the random numbers.")
    image_digests: tuple[str, ...] = Field(description="SHA-256 of each photograph's file.")
    captions: tuple[str, ...] | None = Field(
        default=None, description="Prompts of the photographs."
    )
    versions: dict[str, str] = Field(description="Versions of dbray and its libraries.")
    timings: dict[str, float] = Field(description="Seconds by phase.")
    steps: int = Field(ge=0, description="Optimiser steps that made the weights.")
    loss: tuple[tuple[int, float, float, float], ...] = Field(
        default=(), max_length=200, description="Points of (step, loss, instance loss, prior loss)."
    )
    super_resolution_loss: tuple[tuple[int, float, float, float], ...] = Field(
        default=(), max_length=200, description="The same of the second stage."
    )
    fidelity: tuple[tuple[int, float, float, float], ...] = Field(
        default=(),
        description="Where training could stop early: points of (step, identity, drift, seconds).",
    )
    files: tuple[str, ...] = Field(min_length=1, description="Weight files (safetensors).")
    created_at: str = Field(description="UTC time of publishing, ISO 8601.")
    job_id: str = Field(description="The job that made it.")
    tenant: str | None = Field(default=None, description="Owner, where several share one registry.")
    metadata: dict[str, str] = Field(default_factory=dict, description="Free notes.")

    @property
    def name(self) -> str:
        """'id@revision', as every command accepts it."""
        return f"{self.id}@{self.revision}"

    @property
    def served_by(self) -> tuple[str, str | None]:
        """Name and commit of the base that serves it."""
        if self.serve_base is not None:
            return self.serve_base, self.serve_base_revision
        return self.base, self.base_revision

    def fits(self, base_digest: str, super_resolution_digest: str | None = None) -> bool:
        """Whether it can be put on a base: the one it was trained on, or the one that serves it.

        A cascade needs the second stage too.
        """
        wanted = self.super_resolution_digest
        fits_second = wanted is None or wanted == super_resolution_digest
        return fits_second and base_digest in (self.base_digest, self.serve_base_digest)

    def of_another(self, base_digest: str) -> str:
        """Say that it does not fit the base that is here."""
        trained, here = self.base_digest[:12], base_digest[:12]
        return f"was trained on another {self.base!r} ({trained}, here is {here})"

    @property
    def has_its_revision(self) -> bool:
        """Whether the revision is the start of the fingerprint."""
        return self.revision == self.fingerprint[:REVISION_LENGTH]


@dataclass(frozen=True)
class Revision:
    """A published revision that was found. Its marker is not read again."""

    record: ModelRecord
    folder: Committed

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of each weight file, as published."""
        return {name: self.folder.files[name].sha256 for name in self.record.files}

    def fetch_weights(self, destination: Path) -> dict[str, Path]:
        """Return verified local weight files; see `Committed.fetch`."""
        return self.folder.fetch(self.record.files, destination)

    def local_weights(self) -> dict[str, Path]:
        """Return the weight files in place, unverified; `digests` has their expected digests.

        Raises:
            StoreError: the store is not on this machine.
        """
        return self.folder.local_paths(self.record.files)
