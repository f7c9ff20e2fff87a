"""Publishes what a lane has trained: the weights, and a record of how they were made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata

from dbray.bases import Base
from dbray.lanes.beat import Clock
from dbray.method.methods import method_of
from dbray.method.stages import as_second
from dbray.planning.plan import PlannedSubject
from dbray.records.models import ModelRecord, Registry
from dbray.spec.canon import utc_now
from dbray.spec.job import Job
from dbray.storage.store import Store
from dbray.training.loop import Progress

_VERSIONED = ("dbray", "torch", "diffusers", "transformers", "deepspeed", "ray")


class Publisher:
    """Publishes the subjects of one job."""

    def __init__(self, job: Job, base: Base, num_slots: int = 1) -> None:
        self._job, self._base, self._num_slots = job, base, num_slots
        self._registry = Registry(Store(job.storage))
        self._versions = {name: metadata.version(name) for name in _VERSIONED}

    def publish(
        self,
        planned: PlannedSubject,
        results: Sequence[tuple[Mapping[str, bytes], Progress]],
        clock: Clock,
    ) -> None:
        """Publish a model: the files of each stage, and how they were reached.

        Raises:
            StoreError: nothing was published.
        """
        files, trained = results[0]
        record = self._record(planned, trained, files, clock)
        if len(results) > 1:
            second, enlarging = results[1]
            files = {**files, **as_second(second)}
            found = {"files": tuple(files), "super_resolution_loss": _points(enlarging)}
            record = record.model_copy(update=found)
        self._registry.publish(record, files)

    def _record(
        self,
        planned: PlannedSubject,
        trained: Progress,
        files: Mapping[str, bytes],
        clock: Clock,
    ) -> ModelRecord:
        subject, job, base = planned.subject, self._job, self._base
        return ModelRecord(
            id=subject.id,
            revision=planned.revision,
            fingerprint=planned.fingerprint,
            class_noun=subject.class_noun,
            ablation=subject.ablation,
            identifier=planned.identifier,
            base=base.name,
            base_revision=job.base_revision,
            base_digest=base.digest,
            serve_base=base.serves and base.serves.name,
            serve_base_revision=base.serves and base.serves.revision,
            serve_base_digest=base.serves and base.serves.digest,
            recipe=job.recipe,
            super_resolution=job.super_resolution,
            super_resolution_digest=base.super_resolution and base.super_resolution.digest,
            super_resolution_prior_digest=planned.enlarged_digest,
            prior=job.prior,
            prior_digest=planned.prior_digest,
            seed=job.recipe.seed,
            image_digests=planned.image_digests,
            captions=subject.captions,
            versions=self._versions,
            timings={name: round(seconds, 4) for name, seconds in clock.seconds.items()},
            steps=trained.step,
            loss=_points(trained),
            fidelity=tuple((p.step, p.identity, p.drift, p.seconds) for p in trained.fidelity),
            files=tuple(files),
            created_at=utc_now(),
            job_id=job.id,
            tenant=job.tenant,
            metadata={
                **method_of(job.recipe.method).about(files),
                **_strength(planned),
                **self._pack(),
            },
        )

    def _pack(self) -> dict[str, str]:
        """The number of subjects that trained together, on which the weights' last bits depend."""
        return {"pack": str(self._num_slots)} if self._num_slots > 1 else {}


def _points(trained: Progress) -> tuple[tuple[int, float, float, float], ...]:
    """The loss curve as a record holds it."""
    return tuple((p.step, p.loss, p.instance_loss, p.prior_loss) for p in trained.curve)


def _strength(planned: PlannedSubject) -> dict[str, str]:
    """That of the base's prior for the identifier, where it is measured."""
    if planned.strength is None:
        return {}
    return {"identifier_strength": f"{planned.strength:.2f}"}
