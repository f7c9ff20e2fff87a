"""The phase that scores published models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

from dbray.planning.plan import PlannedSubject
from dbray.records import scores as layout
from dbray.records.annexes import Annex
from dbray.report.contents import Contents
from dbray.run.annexes import AnnexPhase
from dbray.sampling.joining import AnnexRequest, Failures
from dbray.sampling.pool import SamplingPool
from dbray.sampling.scores import Measure, describe, make_scores, measure_of
from dbray.scores.flags import Flag
from dbray.storage.store import Store


class Flagged(NamedTuple):
    """A model whose scores show faults."""

    model: str
    """'id@revision'."""
    flags: tuple[Flag, ...]


def flagged_in(contents: Contents) -> tuple[Flagged, ...]:
    """Return the published models whose scores show faults, of those that a report has read."""
    return tuple(
        Flagged(card.record.name, card.flags)
        for card in contents.cards
        if card.record and card.flags
    )


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
            SamplingPool.of(self.plan.job.resources),
            self.recorder.progress,
        )
