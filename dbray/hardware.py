"""The CPUs and GPUs of a cluster or a machine."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from dbray.processes import num_cores
from dbray.spec.resources import Device


@dataclass(frozen=True)
class Hardware:
    """The CPUs, GPUs and memory that a job can use."""

    num_cpus: int
    num_gpus: int
    memory_bytes: int | None = None
    """Memory of one GPU or, without GPUs, of the machine; None if unknown."""

    @classmethod
    def local(cls) -> Hardware:
        """The hardware of this machine."""
        num_gpus = torch.cuda.device_count()
        if num_gpus:
            memory = torch.cuda.get_device_properties(0).total_memory
        else:
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return cls(num_cores(), num_gpus, memory)

    def uses_gpus(self, device: Device) -> bool:
        """Whether work on this device uses GPUs."""
        return device == "cuda" or (device == "auto" and self.num_gpus > 0)
