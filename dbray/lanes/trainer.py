"""Ray Train's trainer of a lane, without the helper processes that a lane does not need.

On a small machine they matter: every actor of Ray wakes 100 times a second, each time in the place
of a lane that trains.
"""

from __future__ import annotations

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import RayTrainCallback

_UNUSED = (
    DatasetsCallback,  # hands out shards of datasets, of which a lane has none
    PlacementGroupCleanerCallback,  # the driver frees the room of a lane that is lost
)


class LaneTrainer(TorchTrainer):
    """Saves two processes per lane. Ray has no public choice of them."""

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if not isinstance(callback, _UNUSED)]
