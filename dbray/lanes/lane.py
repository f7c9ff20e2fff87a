"""One rank of a lane: the warm backbone and pack, and all else that it keeps between subjects."""

from __future__ import annotations

from functools import partial

import torch

from dbray import bases
from dbray.bases import Base, Compute
from dbray.lanes.beat import Beat
from dbray.lanes.fidelity import FidelityMeter
from dbray.lanes.material import Material
from dbray.lanes.publish import Publisher
from dbray.method.methods import method_of
from dbray.planning.stop import StopMeasure
from dbray.spec.job import Job
from dbray.storage.store import Store
from dbray.training.batches import Share
from dbray.training.pack import Pack, Slots, make_pack


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
        recipe, num_slots = self.recipe, self.num_slots
        compute = Compute(
            str(device),
            recipe.precision,
            recipe.resolution,
            recipe.gradient_checkpointing,
            visits=True,
        )
        self.backbone = backbone = bases.load(self.base, compute)
        self.method = method_of(recipe.method)
        network = self.method.network(backbone, recipe, num_slots)
        rates = self.method.rates(network, recipe)
        self.after_step = self.method.after_step if rates else None
        slots = Slots(num_slots, partial(self.method.assign, network))
        self.pack: Pack = make_pack(network, recipe, self.resources, device, rates, slots)
        self.schedule = backbone.schedule.to(device)
        self.material = Material(job, backbone)
        self.publisher = Publisher(job, base, num_slots)
        self.meter = self._meter(measure) if self.leads else None

    def _meter(self, measure: StopMeasure | None) -> FidelityMeter | None:
        stop = self.recipe.stop
        return FidelityMeter(stop, measure, self.backbone) if stop and measure else None

    @property
    def num_slots(self) -> int:
        """Subjects that train together, which is settled before lanes start."""
        assert isinstance(self.resources.pack, int)
        return self.resources.pack

    @property
    def leads(self) -> bool:
        """Whether this rank reports for the lane."""
        return self.share.rank == 0
