"""One rank of a lane: the warm networks and packs, and all else that it keeps between subjects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from dbray import bases
from dbray.bases import Base
from dbray.lanes.beat import Beat
from dbray.lanes.fidelity import FidelityMeter
from dbray.lanes.publish import Publisher
from dbray.lanes.stage import make_stage
from dbray.planning.cascade import trained_stages
from dbray.planning.stop import StopMeasure
from dbray.spec.job import Job
from dbray.storage.store import Store
from dbray.training.batches import Share

if TYPE_CHECKING:
    from dbray.lanes.attempt import Attempt


class Lane:
    """What the attempts at all subjects of one rank share."""

    def __init__(
        self,
        job: Job,
        base: Base,
        measure: StopMeasure | None,
        share: Share,
        device: torch.device,
        beat: Beat,
    ) -> None:
        self.job, self.recipe, self.resources = job, job.recipe, job.resources
        self.share, self.device, self.beat = share, device, beat
        self.store = Store(job.storage)
        self.base = bases.find_on_this_node(base)
        num_slots = self.num_slots
        self.stages = tuple(
            make_stage(job, base, section, num_slots, str(device))
            for base, _, section in trained_stages(job, self.base)
        )
        """The networks that it trains, in the order in which a subject passes through them."""
        self.publisher = Publisher(job, base, num_slots)
        self.meter = self._meter(measure) if self.leads else None

    def _meter(self, measure: StopMeasure | None) -> FidelityMeter | None:
        stop = self.recipe.stop
        first = self.stages[0].backbone
        return FidelityMeter(stop, measure, first) if stop and measure else None

    def step(self, attempts: Mapping[int, Attempt]) -> None:
        """Take the next step of some attempts, by slot: those at one stage together."""
        for stage in self.stages:
            courses = {slot: one.course for slot, one in attempts.items() if one.stage is stage}
            if courses:
                stage.pack.step(courses)

    @property
    def is_broken(self) -> bool:
        """Whether a step broke off beyond repair."""
        return any(engine.broken for stage in self.stages for engine in stage.pack.engines)

    @property
    def num_slots(self) -> int:
        """Subjects that train together, which is settled before lanes start."""
        assert isinstance(self.resources.pack, int)
        return self.resources.pack

    @property
    def leads(self) -> bool:
        """Whether this rank reports for the lane."""
        return self.share.rank == 0
