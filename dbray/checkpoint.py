"""The state of a subject in flight: saved now and then, so that a kill costs little of a long one.

Owns where it lies and when it counts. Files are safetensors, never pickles, and one of each rank;
a checkpoint counts when those of all ranks are committed. Restoring continues bit for bit.
"""

from __future__ import annotations

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import distributed as dist

from dbray.engine import Engine
from dbray.finetune import LossPoint, Progress, Share
from dbray.store import Store

_CURVE = "dbray.loss_curve"
_STATE = "state.safetensors"


class Checkpoint:
    """The state of a subject in flight, one file per rank and step, safetensors only.

    A checkpoint counts when every rank's file of its step is committed.
    """

    def __init__(self, store: Store, job_id: str, revision: str, share: Share) -> None:
        self._store, self._share = store, share
        self._folder = f"jobs/{job_id}/checkpoints/{revision}"

    def _rank_folder(self, step: int, rank: int) -> str:
        return f"{self._folder}/{step:08d}-of-{self._share.world_size}/rank-{rank}"

    def save(self, engine: Engine, progress: Progress) -> None:
        """Commit this rank's state; drop the one before."""
        earlier, step = self._steps(), progress.step
        curve = [(p.step, p.loss, p.instance_loss, p.prior_loss) for p in progress.curve]
        tensors = engine.state() | {_CURVE: torch.tensor(curve, dtype=torch.float64).reshape(-1, 4)}
        folder = self._rank_folder(step, self._share.rank)
        self._store.commit(folder, {_STATE: save_tensors(tensors)})
        if self._share.world_size > 1:
            dist.barrier()
        if self._share.rank == 0:
            for old in earlier:
                if old != step:
                    self._store.remove(self._rank_folder(old, 0).rsplit("/", 1)[0])

    def restore(self, engine: Engine) -> Progress:
        """Load the newest complete checkpoint into the engine, if there is one."""
        for step in reversed(self._steps()):
            ranks = range(self._share.world_size)
            if all(self._store.is_committed(self._rank_folder(step, rank)) for rank in ranks):
                folder = self._rank_folder(step, self._share.rank)
                tensors = load_tensors(self._store.read_committed(folder, _STATE))
                curve = tensors.pop(_CURVE).tolist()
                engine.load_state(tensors)
                return Progress(step, tuple(LossPoint(int(row[0]), *row[1:]) for row in curve))
        return Progress()

    def remove(self) -> None:
        """Forget the checkpoints of a subject that is published."""
        if self._share.rank == 0:
            self._store.remove(self._folder)

    def _steps(self) -> list[int]:
        suffix = f"-of-{self._share.world_size}"
        names = self._store.names(self._folder)
        return sorted(int(name.removesuffix(suffix)) for name in names if name.endswith(suffix))
