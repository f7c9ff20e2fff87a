"""The phase that scores published models."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

from dbray.errors import StoreError
from dbray.planning.plan import Plan, PlannedSubject
from dbray.records import scores as layout
from dbray.records.annexes import Annex
from dbray.records.results import Outcome
from dbray.run.annexes import AnnexPhase
from dbray.sampling.joining import AnnexRequest, Failures
from dbray.sampling.pool import SamplingPool
from dbray.sampling.scores import Measure, describe, make_scores, measure_of
from dbray.scores.flags import Flag, flags_of
from dbray.storage.store import Store

logger = logging.getLogger(__name__)


MAX_READ = 2_000
"""Models whose scores are read again at the end of a run."""


class Flagged(NamedTuple):
    """A model whose scores show faults."""

    model: str
    """'id@revision'."""
    flags: tuple[Flag, ...]


def find_flagged(plan: Plan, store: Store, outcomes: Sequence[Outcome]) -> tuple[Flagged, ...]:
    """Return the published models whose scores show faults, among the first MAX_READ.

    Models are published and the run has ended, so a storage that fails here is not an error.
    """
    if plan.job.scoring.embedder is None:
        return ()
    models = [f"{one.id}@{one.revision}" for one in outcomes if one.is_published][:MAX_READ]
    try:
        found = zip(models, layout.read_all(store, models), strict=True)
        rows = [Flagged(model, flags_of(scores)) for model, scores in found if scores]
    except StoreError as exc:
        logger.warning("scores unreadable job=%s: %s", plan.job.id, exc)
        return ()
    return tuple(row for row in rows if row.flags)


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
