"""What a cluster or a machine holds: CPUs and GPUs."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from dbray.spec.sections import Device


@dataclass(frozen=True)
class Hardware:
    """What the cluster holds."""

    num_cpus: int
    num_gpus: int

    @classmethod
    def local(cls) -> Hardware:
        """What this machine holds."""
        return cls(os.cpu_count() or 1, torch.cuda.device_count())

    def uses_gpus(self, device: Device) -> bool:
        """Whether work on this device asks for GPUs here."""
        return device == "cuda" or (device == "auto" and self.num_gpus > 0)
