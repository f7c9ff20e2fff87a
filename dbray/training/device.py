"""What can go wrong with a device: it is lost, or its memory is full."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dbray.errors import OutOfMemory


def device_is_lost(device: torch.device, exc: Exception) -> bool:
    """Whether `exc` comes from a device on which every later call of this process fails too.

    What breaks in one call surfaces in any later one that waits for the device, and libraries such
    as cuBLAS raise RuntimeErrors of their own. So the device itself is tried.
    """
    if isinstance(exc, torch.AcceleratorError):
        return True
    if device.type == "cpu":
        return False
    try:
        torch.accelerator.synchronize(device)
    except RuntimeError:
        return True
    return False


@contextmanager
def translated(device: torch.device) -> Iterator[None]:
    """Raise OutOfMemory, with what a user can do, where the device's memory is full."""
    try:
        yield
    except torch.OutOfMemoryError as exc:
        fix = (
            "lower batch_size, resolution or pack, turn on gradient_checkpointing, or raise "
            "zero_stage"
        )
        raise OutOfMemory(f"the memory of {device} does not hold this recipe: {fix}") from exc
