"""Records of models without training, and publishing them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from dbray.planning.plan import Plan, PlannedSubject
from dbray.records.models import ModelRecord, Registry
from dbray.spec.job import Job
from dbray.spec.recipe import Recipe
from dbray.spec.sections import Prior
from dbray.storage.store import Store


def record(
    model_id: str = "rex", number: int = 0, created_at: str | None = None, **fields: Any
) -> ModelRecord:
    """Make a record of a model of the miniature; another `number` gives another revision."""
    fingerprint = fields.pop("fingerprint", hashlib.sha256(f"{model_id} {number}".encode()))
    if not isinstance(fingerprint, str):
        fingerprint = fingerprint.hexdigest()
    usual = {
        "id": model_id, "revision": fingerprint[:12], "fingerprint": fingerprint,
        "class_noun": "dog", "identifier": "zx", "base": "miniature", "base_digest": "0" * 64,
        "recipe": Recipe(), "prior": Prior(), "prior_digest": None, "seed": 0,
        "image_digests": ("1" * 64,), "versions": {"dbray": "0.1.0"}, "timings": {"train": 1.5},
        "steps": 3, "loss": ((1, 0.5, 0.25, 0.25),), "files": ("unet.safetensors",),
        "created_at": created_at or f"2026-01-01T00:00:{number:02}+00:00", "job_id": "job",
    }  # fmt: skip
    return ModelRecord.model_validate(usual | fields)


def record_of(plan: Plan, planned: PlannedSubject, **fields: Any) -> ModelRecord:
    """Make the record that a lane would publish for a planned subject."""
    subject, job, base = planned.subject, plan.job, plan.base
    known = {
        "fingerprint": planned.fingerprint, "class_noun": subject.class_noun,
        "identifier": planned.identifier, "base": base.name, "base_digest": base.digest,
        "recipe": job.recipe, "prior": job.prior, "prior_digest": planned.prior_digest,
        "image_digests": planned.image_digests, "tenant": job.tenant,
    }  # fmt: skip
    return record(subject.id, **(known | fields))


def files_of(job: Job, model: str) -> dict[str, bytes]:
    """Return a published model's weight files."""
    registry = Registry(Store(job.storage))
    paths = registry.weights(registry.find(model), Path(job.storage))
    return {name: path.read_bytes() for name, path in paths.items()}


def publish(
    storage: Path | str,
    model: ModelRecord | None = None,
    weights: bytes = b"weights",
    **fields: Any,
) -> ModelRecord:
    """Publish a record, or one made from `fields`; each weight file has the same bytes."""
    model = model or record(**fields)
    Registry(Store(str(storage))).publish(model, dict.fromkeys(model.files, weights))
    return model
