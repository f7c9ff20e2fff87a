"""The phase that samples previews of published models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from dbray.planning.plan import PlannedSubject
from dbray.records import previews as layout
from dbray.records.annexes import Annex
from dbray.run.annexes import AnnexPhase
from dbray.sampling.joining import AnnexRequest, Failures
from dbray.sampling.pool import SamplingPool
from dbray.sampling.previews import describe, make_previews
from dbray.storage.store import Store


@dataclass
class PreviewImages(AnnexPhase):
    """Makes the missing previews of published models."""

    name: ClassVar[str] = "previews"

    @property
    def is_wanted(self) -> bool:
        """See AnnexPhase."""
        return bool(self.plan.job.previews.prompts)

    def annex(self, store: Store, model: str) -> Annex:
        """See AnnexPhase."""
        return layout.annex(store, model)

    def description(self, planned: PlannedSubject) -> dict[str, bytes]:
        """See AnnexPhase."""
        previews = self.plan.job.previews
        return describe(previews, planned.subject.class_noun, planned.identifier)

    def make(self, lacking: Sequence[AnnexRequest]) -> Failures:
        """See AnnexPhase."""
        return make_previews(
            self.recorder.journal.store,
            self.plan.base.serving,
            lacking,
            self.plan.job.previews,
            SamplingPool.of(self.plan.job.resources),
            self.recorder.progress,
        )
