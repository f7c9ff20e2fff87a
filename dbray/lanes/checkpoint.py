"""The state of a subject in flight: saved now and then, so that a kill costs little of a long one.

Owns where it lies and when it counts. Files are safetensors, never pickles, and one of each rank;
a checkpoint counts when those of all ranks are committed. Restoring continues bit for bit.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor
from torch import distributed as dist

from dbray.errors import StoreError, TrainError
from dbray.storage.committed import Committed
from dbray.storage.store import Store
from dbray.training.engine import Engine
from dbray.training.loop import LossPoint, Progress, Share

logger = logging.getLogger(__name__)

_CURVE = "dbray.loss_curve"
_STATE = "state.safetensors"


class Checkpoint:
    """The state of a subject in flight, one file per rank and step, safetensors only.

    A checkpoint counts when every rank's file of its step is committed. All ranks make the same
    calls.
    """

    def __init__(
        self, store: Store, job_id: str, revision: str, share: Share, zero_stage: int
    ) -> None:
        self._store, self._share = store, share
        self._folder = f"{_folder(job_id)}/{revision}"
        # What was saved with other ranks or another sharding is of no use.
        self._suffix = f"-of-{share.world_size}-zero-{zero_stage}"

    def _step_folder(self, step: int) -> str:
        return f"{self._folder}/{step:08d}{self._suffix}"

    def _rank_folder(self, step: int, rank: int) -> str:
        return f"{self._step_folder(step)}/rank-{rank}"

    def save(self, state: Mapping[str, Tensor], progress: Progress) -> None:
        """Commit what this rank's engine gave as its state; drop the one before."""
        earlier, step = self._steps(), progress.step
        curve = [(p.step, p.loss, p.instance_loss, p.prior_loss) for p in progress.curve]
        curve_tensor = torch.tensor(curve, dtype=torch.float64).reshape(-1, 4)
        folder = self._rank_folder(step, self._share.rank)
        self._store.commit(folder, {_STATE: save_tensors({**state, _CURVE: curve_tensor})})
        if self._share.world_size > 1:
            dist.barrier()
        if self._share.rank == 0:
            for old in earlier:
                if old != step:
                    self._store.remove(self._step_folder(old))

    def restore(self, engine: Engine) -> Progress:
        """Load the newest usable checkpoint into the engine, if there is one.

        A damaged one, or one that another lane has just removed, costs its steps and no more: it
        is removed, and the one before or the beginning taken.
        """
        # What rank 0 sees: a listing may differ from one moment to the next.
        for step in self._share.of_first(sorted(self._steps(), reverse=True)):
            state = self._read(step)
            # Sharded engines load together: none begins where another has nothing to load.
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
        """What this rank saved; None where it, or that of another rank, is not there or damaged."""
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
        """Load it into the engine; None where it does not fit, which it then does on no rank."""
        try:
            curve = state.pop(_CURVE).tolist()
            engine.load_state(state)
        except (TrainError, KeyError) as exc:
            self._warn(step, exc)
            return None
        return Progress(step, tuple(LossPoint(int(row[0]), *row[1:]) for row in curve))

    def _warn(self, step: int, exc: Exception) -> None:
        logger.warning("checkpoint unusable folder=%s error=%s", self._step_folder(step), exc)

    def remove(self) -> None:
        """Forget the checkpoints of a subject that is published."""
        if self._share.rank == 0:
            self._store.remove(self._folder)

    def _steps(self) -> list[int]:
        names = self._store.names(self._folder)
        starts = (name.removesuffix(self._suffix) for name in names if name.endswith(self._suffix))
        return [int(start) for start in starts if start.isdecimal()]


def forget_checkpoints(store: Store, job_id: str, keep: Collection[str]) -> None:
    """Remove the checkpoints of a job, but those of the revisions that are still to be trained."""
    for revision in store.names(_folder(job_id)):
        if revision not in keep:
            store.remove(f"{_folder(job_id)}/{revision}")


def _folder(job_id: str) -> str:
    return f"jobs/{job_id}/checkpoints"
