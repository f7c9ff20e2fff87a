"""The state of a subject in training, saved regularly, so that a kill costs few of its steps.

Owns where checkpoints are stored and which of them are valid. Each rank writes one safetensors
file, never a pickle. A checkpoint is valid once the files of all ranks are committed. Training that
continues from one gives the same bits as training without an interruption.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import astuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor
from torch import distributed as dist

from dbray.errors import StoreError, TrainError
from dbray.storage.committed import Committed
from dbray.storage.store import Store
from dbray.training.batches import Share
from dbray.training.curve import LossPoint
from dbray.training.engine import Engine
from dbray.training.loop import Progress
from dbray.training.stopping import FidelityPoint

logger = logging.getLogger(__name__)

_CURVE, _FIDELITY = "dbray.loss_curve", "dbray.fidelity_curve"
_BEST = "best/"
"""Prefix of the best weights so far, where training may stop early."""
_STATE = "state.safetensors"


class Checkpoint:
    """The checkpoints of one subject. All ranks make the same calls."""

    def __init__(
        self,
        store: Store,
        job_id: str,
        revision: str,
        share: Share,
        zero_stage: int,
        num_slots: int = 1,
    ) -> None:
        self._store, self._share = store, share
        self._folder = f"{_folder(job_id)}/{revision}"
        # A checkpoint of other ranks or another sharding cannot be loaded. One of another number
        # of slots could be, but then the weights would be neither those of the one nor the other.
        self._suffix = f"-of-{share.world_size}-zero-{zero_stage}"
        if num_slots > 1:
            self._suffix += f"-pack-{num_slots}"

    def _step_folder(self, step: int) -> str:
        return f"{self._folder}/{step:08d}{self._suffix}"

    def _rank_folder(self, step: int, rank: int) -> str:
        return f"{self._step_folder(step)}/rank-{rank}"

    def save(self, state: Mapping[str, Tensor], progress: Progress) -> None:
        """Commit the state of this rank's engine; remove the previous checkpoint."""
        earlier, step = self._steps(), progress.step
        folder = self._rank_folder(step, self._share.rank)
        self._store.commit(folder, {_STATE: save_tensors({**state, **_tensors_of(progress)})})
        if self._share.world_size > 1:
            dist.barrier()
        if self._share.rank == 0:
            for old in earlier:
                if old != step:
                    self._store.remove(self._step_folder(old))

    def restore(self, engine: Engine) -> Progress:
        """Load the newest usable checkpoint into the engine, if there is one.

        One that is damaged, or that another lane has just removed, costs only its steps: it is
        removed, and training continues from the previous one or from the beginning.
        """
        # The listing of rank 0: those of other ranks may differ.
        for step in self._share.of_first(sorted(self._steps(), reverse=True)):
            state = self._read(step)
            # Sharded engines load together: either all ranks load, or none.
            if all(self._share.gather(state is not None)):
                assert state is not None
                progress = self._load(engine, step, state)
                if progress is not None:
                    return progress
                engine.reset()
            if self._share.rank == 0:
                self._store.remove(self._step_folder(step))
        return Progress()

    def _read(self, step: int) -> dict[str, Tensor] | None:
        """The state of this rank; None if that of any rank is missing, or this one is damaged."""
        ranks = range(self._share.world_size)
        try:
            if not all(self._store.is_committed(self._rank_folder(step, rank)) for rank in ranks):
                return None
            folder = self._rank_folder(step, self._share.rank)
            return load_tensors(Committed(self._store, folder).read(_STATE))
        except (StoreError, SafetensorError) as exc:
            self._warn(step, exc)
            return None

    def _load(self, engine: Engine, step: int, state: dict[str, Tensor]) -> Progress | None:
        """Load a state into the engine; None if it does not fit, which then holds for all ranks."""
        try:
            curve, fidelity = (_rows(state.pop(name)) for name in (_CURVE, _FIDELITY))
            names = [name for name in state if name.startswith(_BEST)]
            best = {name.removeprefix(_BEST): state.pop(name) for name in names}
            engine.load_state(state)
        except (TrainError, KeyError) as exc:
            self._warn(step, exc)
            return None
        return Progress(
            step,
            tuple(LossPoint(*row) for row in curve),
            tuple(FidelityPoint(*row) for row in fidelity),
            best,
        )

    def _warn(self, step: int, exc: Exception) -> None:
        logger.warning("checkpoint unusable folder=%s error=%s", self._step_folder(step), exc)

    def remove(self) -> None:
        """Remove the checkpoints of a published subject."""
        if self._share.rank == 0:
            self._store.remove(self._folder)

    def _steps(self) -> list[int]:
        names = self._store.names(self._folder)
        starts = (name.removesuffix(self._suffix) for name in names if name.endswith(self._suffix))
        return [int(start) for start in starts if start.isdecimal()]


def _tensors_of(progress: Progress) -> dict[str, Tensor]:
    best = {f"{_BEST}{name}": tensor for name, tensor in progress.best.items()}
    curves = {_CURVE: progress.curve, _FIDELITY: progress.fidelity}
    return best | {
        name: torch.tensor([astuple(point) for point in points], dtype=torch.float64).reshape(-1, 4)
        for name, points in curves.items()
    }


def _rows(curve: Tensor) -> list[tuple[int, float, float, float]]:
    return [(int(step), *rest) for step, *rest in curve.tolist()]


def forget_checkpoints(store: Store, job_id: str, keep: Collection[str]) -> None:
    """Remove the checkpoints of a job, except those of the revisions to keep."""
    for revision in store.names(_folder(job_id)):
        if revision not in keep:
            store.remove(f"{_folder(job_id)}/{revision}")


def _folder(job_id: str) -> str:
    return f"jobs/{job_id}/checkpoints"
