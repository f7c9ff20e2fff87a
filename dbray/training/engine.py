"""Optimiser steps on the trained parameters: plain torch, or DeepSpeed ZeRO, behind one protocol.

An engine outlives subjects: `reset` leaves, bit for bit, what a new engine would start from. Does
not know losses, subjects or Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dbray.errors import TrainError
from dbray.spec.recipe import Recipe
from dbray.spec.resources import Resources
from dbray.training.device import translated
from dbray.training.plain import TorchEngine
from dbray.training.rates import Rate
from dbray.training.zero import ZeroEngine


class Engine(Protocol):
    """Takes optimiser steps on the parameters of one module that require gradients.

    With several ranks, each holds an engine and all of them make the same calls. The call and
    `step` raise OutOfMemory where the device's memory does not hold them.
    """

    module: nn.Module
    broken: bool
    """Whether a step broke off beyond repair: its process must be replaced."""

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Call the module in the recipe's precision; return its (first) output in float32."""
        ...

    def step(self, loss: Tensor) -> Tensor:
        """Take one step; return the gradients' norm before clipping, a 0-d tensor on the device.

        Gradients are averaged over the ranks. Nobody looks whether loss and norm are finite:
        plain torch never waits for the device here.
        """
        ...

    def reset(self) -> None:
        """Go back to the base weights, in place; LaneLost where a step broke off beyond repair."""

    def assign(self, values: Mapping[str, Tensor]) -> None:
        """Set some trained parameters, by name; before the first step their averages too."""
        ...

    def current(self, name: str) -> Tensor:
        """Return one trained parameter as it is now, whole, in float32."""
        ...

    def averaged(self) -> AbstractContextManager[None]:
        """Hold the moving average, if there is one, in the place of the trained parameters.

        Under ZeRO the module does not compute with it.
        """
        ...

    def weights(self) -> dict[str, Tensor]:
        """Copy the trained parameters, or their moving average, by name to float32 CPU tensors.

        Rank 0 gets all of them, whole; the other ranks take part and get none.
        """
        ...

    def state(self) -> dict[str, Tensor]:
        """Copy to the CPU all that this rank needs to continue bit for bit."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned on this rank; TrainError where it does not fit."""


def make_engine(
    module: nn.Module,
    recipe: Recipe,
    resources: Resources,
    device: torch.device,
    rates: Mapping[str, Rate] | None = None,
) -> TorchEngine | ZeroEngine:
    """Make the engine of a module that holds the base weights; the module is the engine's now.

    `resources` say how it is shared out, offloaded and compiled. `rates` are those of parameters
    that do not follow the recipe's learning rate, by name. The ranks are those of
    torch.distributed; where it is not initialised, there is one.

    Raises:
        TrainError: nothing requires gradients, or DeepSpeed cannot use the device.
        OutOfMemory: the device does not hold the parameters.
    """
    settle_types(module, recipe, device)
    kind = ZeroEngine if resources.zero_stage else TorchEngine
    with translated(device):
        return kind(module, recipe, resources, device, rates or {})


def settle_types(module: nn.Module, recipe: Recipe, device: torch.device) -> None:
    """Set the types in which a recipe is trained, in this process.

    Trained parameters are in float32. With bfloat16, frozen float32 ones are held in it: autocast
    would round them at every use, so that nothing is lost. Those in other types stay as they are.

    Raises:
        TrainError: nothing is trained.
    """
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise TrainError("no parameter of the module requires gradients: nothing to train")
    in_bf16 = recipe.precision == "bf16"
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
        elif in_bf16 and parameter.dtype == torch.float32:
            parameter.data = parameter.data.bfloat16()
    if device.type == "cpu":
        # The fused attention, of CPUs too: its backward pass takes eight times as long in bfloat16
        # as in float32, that of plain products does not.
        torch.backends.cuda.enable_flash_sdp(not in_bf16)


def memory_plan(
    num_trained: int, frozen_bytes: int, recipe: Recipe, resources: Resources
) -> dict[str, int]:
    """Return the bytes that an engine keeps on each GPU, by kind.

    `frozen_bytes` is the size of the frozen weights that a step computes with. Left out:
    activations and communication buffers (at most 0.4 GB); the base weights to go back to lie in
    CPU memory. Source: Rajbhandari et al. 2020 (arXiv 1910.02054), section 3; DeepSpeed adds
    masters beside float32 parameters at stages 1 and 2, and in a step a rank's share of the
    gradients once more, in float32.
    """
    stage, num_ranks = resources.zero_stage, resources.gpus_per_subject
    whole, share = num_trained, -(-num_trained // num_ranks)
    bf16 = recipe.precision == "bf16"
    width = 2 if bf16 else 4
    if stage == 0:  # autocast holds the weights in bfloat16 as well during a forward pass
        parameters, gradients, optimiser = (6 if bf16 else 4) * whole, 4 * whole, 8 * whole
    else:
        parameters = width * (share if stage == 3 else whole)
        gradients = width * (whole if stage == 1 else share) + 4 * share
        # Stage 3 updates float32 parameters in place: they are their own masters.
        optimiser = (8 if stage == 3 and not bf16 else 12) * share
    ema = 0 if recipe.ema_decay is None else 4 * (share if stage else whole)
    if resources.offload:
        gradients, optimiser, ema = gradients - 4 * share, 0, 0
    return {
        "parameters": parameters,
        "frozen": -(-frozen_bytes // num_ranks) if stage == 3 else frozen_bytes,
        "gradients": gradients,
        "optimiser": optimiser,
        "ema": ema,
    }
