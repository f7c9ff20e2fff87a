"""The phase that scores published models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from dbray.planning.plan import PlannedSubject
from dbray.records import scores as layout
from dbray.records.annexes import Annex
from dbray.run.annexes import AnnexPhase
from dbray.run.phases import pool_of
from dbray.sampling.joining import AnnexRequest, Failures
from dbray.sampling.scores import Measure, describe, make_scores, measure_of
from dbray.storage.store import Store


@dataclass
class ModelScores(AnnexPhase):
    """Scores the published models that have no scores."""

    name: ClassVar[str] = "scores"

    @property
    def is_wanted(self) -> bool:
        """See AnnexPhase."""
        return self.plan.job.scoring.embedder is not None

    @cached_property
    def _measure(self) -> Measure:
        measure = measure_of(self.plan.job.scoring, self.plan.job.previews)
        assert measure is not None
        return measure

    def annex(self, store: Store, model: str) -> Annex:
        """See AnnexPhase."""
        return layout.annex(store, model)

    def description(self, planned: PlannedSubject) -> dict[str, bytes]:
        """See AnnexPhase."""
        return describe(self._measure, planned.subject.class_noun, planned.identifier)

    def make(self, lacking: Sequence[AnnexRequest]) -> Failures:
        """See AnnexPhase."""
        return make_scores(
            self.recorder.journal.store,
            self.plan.base.serving,
            [one.record for one in lacking],
            [planned.subject for planned in self.plan.subjects],
            self._measure,
            pool_of(self.plan),
            self.recorder.progress,
        )
