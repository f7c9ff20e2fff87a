"""The phases after training: each stores an annex of every published model, such as its previews.

Owns which models lack an annex. Models that cannot have it are reported, and the others continue.
To add an annex: a file next to previews.py, and an entry in ANNEXES of job.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from dbray.errors import DbrayError
from dbray.planning.plan import Plan, PlannedSubject
from dbray.records.annexes import Annex
from dbray.records.models import Registry
from dbray.run.recorder import Recorder
from dbray.sampling.joining import AnnexRequest, Failures
from dbray.storage.store import Store

_LOOKUPS_AT_ONCE = 16


@dataclass
class AnnexPhase(ABC):
    """Makes the missing annexes of published models."""

    plan: Plan
    recorder: Recorder

    name: ClassVar[str]

    @property
    def is_wanted(self) -> bool:
        """Return whether the job requests this annex."""
        return True

    @abstractmethod
    def annex(self, store: Store, model: str) -> Annex:
        """Return the annex of a model, given as 'id@revision'."""

    @abstractmethod
    def description(self, planned: PlannedSubject) -> dict[str, bytes]:
        """Return the file of the annex that differs if and only if the annex would."""

    @abstractmethod
    def make(self, lacking: Sequence[AnnexRequest]) -> Failures:
        """Make annexes; return subject id and reason for every model that has none."""

    @cached_property
    def requests(self) -> list[AnnexRequest]:
        """The published subjects without the annex, or with one of other settings.

        Looked up once: before training if there is nothing to train, else after it.
        """
        if not self.is_wanted:
            return []
        with ThreadPoolExecutor(_LOOKUPS_AT_ONCE) as threads:
            found = threads.map(self._lacking, self.plan.subjects)
            return [one for one in found if one is not None]

    def run(self) -> None:
        """Make the missing annexes."""
        if not self.requests:
            return
        with self.recorder.phase(self.name):
            failures = self.make(self.requests)
        for model_id, reason in failures:
            self._report_missing(model_id, reason)

    def _lacking(self, planned: PlannedSubject) -> AnnexRequest | None:
        registry = Registry(self.recorder.journal.store)
        subject, model = planned.subject, f"{planned.subject.id}@{planned.revision}"
        try:
            if not registry.has(subject.id, planned.revision):
                return None
            if self.annex(registry.store, model).has(self.description(planned)):
                return None
            record = registry.find(model)
        except DbrayError as exc:  # one bad subject never stops a job
            self._report_missing(subject.id, str(exc))
            return None
        # The loss curves of 100,000 subjects would fill gigabytes.
        return AnnexRequest(record.model_copy(update={"loss": ()}), subject.images)

    def _report_missing(self, model_id: str, reason: str) -> None:
        self.recorder.watch.note(f"no {self.name} of {model_id}: {reason}")
