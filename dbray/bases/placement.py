"""Where a model's weights are: on a device while they are used, otherwise in CPU memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def on_device(models: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """Hold copies of the models' weights on the device; afterwards they are where they were.

    Nothing is copied back, so the models must not be trained meanwhile.
    """
    tensors = [t for model in models for t in (*model.parameters(), *model.buffers())]
    before = [tensor.data for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.data = tensor.data.to(device)
        yield
    finally:
        for tensor, data in zip(tensors, before, strict=True):
            tensor.data = data
