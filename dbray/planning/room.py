"""Whether disk and memory hold what a plan needs."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from dbray.errors import Problem, StoreError
from dbray.hardware import Hardware
from dbray.method.methods import method_of
from dbray.planning.plan import Plan
from dbray.storage.store import Store


@dataclass(frozen=True)
class Room:
    """Free bytes where the results go, and bytes of memory of one device; None if unknown."""

    disk_bytes: int | None
    memory_bytes: int | None


def room_for(store: Store, hardware: Hardware) -> Room:
    """Look at a storage's disk and at this machine's devices."""
    return Room(free_bytes(store), hardware.memory_bytes)


def free_bytes(store: Store) -> int | None:
    """Free bytes on the disk of a storage; None for object stores."""
    folder = store.local_path("")
    return None if folder is None else shutil.disk_usage(_existing(folder)).free


def published_weight_bytes(plan: Plan) -> int:
    """Size of the weights that remain to be published."""
    method = method_of(plan.job.recipe.method)
    return len(plan.to_train) * method.published_bytes(plan.base, plan.job.recipe)


def check_disk(plan: Plan, store: Store) -> None:
    """Raise StoreError if the disk cannot hold the weights that remain to be published."""
    needed, free = published_weight_bytes(plan), free_bytes(store)
    if free is not None and needed > free:
        raise StoreError(
            f"no space is left for the models of {len(plan.to_train)} subjects: they need "
            f"{mebibytes(needed)}, {store.uri} has {mebibytes(free)}; free space, or train fewer "
            "subjects"
        )


def shortages(needed_disk: int, needed_memory: int, room: Room, memory_fix: str) -> list[Problem]:
    """Warn where less is free than needed."""
    problems = []
    if room.disk_bytes is not None and needed_disk > room.disk_bytes:
        what = f"up to {mebibytes(needed_disk)} are needed, {mebibytes(room.disk_bytes)} are free"
        problems.append(Problem("warning", "disk", what, "free space, or use another storage"))
    if room.memory_bytes is not None and needed_memory > room.memory_bytes:
        what = (f"a worker needs about {mebibytes(needed_memory)}, a device has "
                f"{mebibytes(room.memory_bytes)}")  # fmt: skip
        problems.append(Problem("warning", "memory", what, memory_fix))
    return problems


def mebibytes(size: int) -> str:
    """A size for people."""
    return f"{size / 2**20:,.3g} MiB" if size < 1000 * 2**20 else f"{size / 2**20:,.0f} MiB"


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())
