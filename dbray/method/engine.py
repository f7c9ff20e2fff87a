"""Optimiser steps on the trained parameters: plain torch, or DeepSpeed ZeRO.

Owns the float32 masters, AdamW, clipping, the moving average and the way back to the base weights,
behind one protocol; sole importer of DeepSpeed. Knows no losses, subjects or Ray. An engine
outlives subjects: `reset` leaves, bit for bit, what a new engine would start from.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import AdamW
from torch.optim.swa_utils import get_ema_multi_avg_fn

from dbray.errors import LaneLost, OutOfMemory, TrainError
from dbray.spec.sections import Recipe


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


def device_is_lost(device: torch.device, exc: Exception) -> bool:
    """Whether `exc` comes from a device on which every later call of this process fails too.

    What breaks in one call surfaces in any later one that waits for the device, and libraries as
    cuBLAS say it in RuntimeErrors of their own. So the device itself is asked.
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


def make_engine(
    module: nn.Module, recipe: Recipe, zero_stage: int, device: torch.device
) -> TorchEngine | ZeroEngine:
    """Make the engine of a module that holds the base weights; the module is the engine's now.

    The ranks are those of torch.distributed; where it is not initialised, there is one.

    Raises:
        TrainError: nothing requires gradients, or DeepSpeed cannot use the device.
        OutOfMemory: the device does not hold the parameters.
    """
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise TrainError("no parameter of the module requires gradients: nothing to train")
    for parameter in module.parameters():  # masters are float32 whatever the base is stored in
        parameter.data = parameter.data.float()
    with translated(device):
        if zero_stage == 0:
            return TorchEngine(module, recipe, device)
        return ZeroEngine(module, recipe, zero_stage, device)


def memory_plan(
    num_parameters: int, recipe: Recipe, zero_stage: int, world_size: int
) -> dict[str, int]:
    """Return the bytes that an engine keeps on each GPU, by kind, for `num_parameters` trained.

    Left out: activations, frozen parts, communication buffers (at most 0.4 GB); the base weights
    to go back to lie in CPU memory. Source: Rajbhandari et al. 2020 (arXiv 1910.02054), section 3;
    DeepSpeed adds masters beside float32 parameters at stages 1 and 2, and in a step a rank's
    share of the gradients once more, in float32.
    """
    whole, share = num_parameters, -(-num_parameters // world_size)
    bf16 = recipe.precision == "bf16"
    width = 2 if bf16 else 4
    if zero_stage == 0:  # autocast holds the weights in bfloat16 as well during a forward pass
        parameters, gradients, optimiser = (6 if bf16 else 4) * whole, 4 * whole, 8 * whole
    else:
        parameters = width * (share if zero_stage == 3 else whole)
        gradients = width * (whole if zero_stage == 1 else share) + 4 * share
        # Stage 3 updates float32 parameters in place: they are their own masters.
        optimiser = (8 if zero_stage == 3 and not bf16 else 12) * share
    ema = 0 if recipe.ema_decay is None else 4 * (share if zero_stage else whole)
    return {"parameters": parameters, "gradients": gradients, "optimiser": optimiser, "ema": ema}


class _Training:
    """What both engines share: masters, AdamW's state, the moving average, the base weights.

    A master is a float32 tensor that AdamW updates: a parameter, or under ZeRO a flat partition
    of many. Subclasses set `_call`, adopt their masters, and say how to `_update` and `weights`.
    """

    _call: nn.Module
    _fragile: bool  # whether an error leaves ranks or gradient buckets out of step

    def __init__(self, module: nn.Module, recipe: Recipe, device: torch.device) -> None:
        self.module = module
        self._recipe, self._device = recipe, device
        self._rank = dist.get_rank() if dist.is_initialized() else 0
        self._trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        rate, decay = recipe.learning_rate, recipe.weight_decay
        # Fused is the fastest on a GPU, and on a CPU six times as fast as foreach.
        self._optimizer = AdamW(self._trained.values(), lr=rate, weight_decay=decay, fused=True)
        self._num_steps, self.broken = 0, False

    def _adopt(self, masters: Mapping[str, Tensor]) -> None:
        """Take over the masters, which hold the base weights."""
        self._masters = dict(masters)
        base = [_cpu_copy(master) for master in self._masters.values()]
        self._base = [b.pin_memory() for b in base] if self._device.type == "cuda" else base
        averaged = self._masters.values() if self._recipe.ema_decay else ()
        self._ema = [master.detach().clone() for master in averaged]
        # AdamW would make its state at the first step. It is made once here and only ever
        # overwritten: DeepSpeed keeps views of it, which would hold on to what is replaced.
        for master in self._masters.values():
            moments = {key: torch.zeros_like(master) for key in ("exp_avg", "exp_avg_sq")}
            step = torch.zeros((), device=master.device)
            self._optimizer.state[master] = {"step": step, **moments}

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        with self._guarded():
            return self._call(*args, **kwargs)

    def step(self, loss: Tensor) -> Tensor:
        """See Engine. The moving average's warm-up is that of CompVis/latent-diffusion's LitEma."""
        with self._guarded():
            norm = self._update(loss)
            self._num_steps += 1
            if self._recipe.ema_decay:
                decay = min(self._recipe.ema_decay, (1 + self._num_steps) / (10 + self._num_steps))
                get_ema_multi_avg_fn(decay)(self._ema, list(self._masters.values()), 0)
            return norm

    def _update(self, loss: Tensor) -> Tensor:
        raise NotImplementedError

    @torch.no_grad()
    def reset(self) -> None:
        """See Engine."""
        if self.broken:
            raise LaneLost("a training step broke off; its worker processes must be replaced")
        _copy_all(self._masters.values(), self._base)
        _copy_all(self._ema, self._base)
        for master in self._masters.values():
            master.grad = None
            for tensor in self._optimizer.state[master].values():
                tensor.zero_()
        self._num_steps = 0
        self._spread_masters()

    def _spread_masters(self) -> None:
        """Bring the weights that the module computes with up to date with the masters."""

    def _tensors(self) -> dict[str, Tensor]:
        """Return the live tensors that make up the state, by name."""
        tensors = {f"ema/{name}": ema for name, ema in zip(self._masters, self._ema, strict=False)}
        for name, master in self._masters.items():
            held = {"master": master, **self._optimizer.state[master]}
            tensors |= {f"{key}/{name}": tensor for key, tensor in held.items()}
        return tensors

    def state(self) -> dict[str, Tensor]:
        """See Engine."""
        saved = {name: _cpu_copy(tensor) for name, tensor in self._tensors().items()}
        return saved | {"num_steps": torch.tensor(self._num_steps)}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See Engine."""
        tensors = self._tensors()
        expected = {"num_steps": torch.Size()} | {name: t.shape for name, t in tensors.items()}
        if {name: tensor.shape for name, tensor in state.items()} != expected:
            raise TrainError("the checkpoint is of another base, recipe, zero_stage or world size")
        for name, tensor in tensors.items():
            tensor.copy_(state[name])
        self._num_steps = int(state["num_steps"])
        self._spread_masters()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            with translated(self._device):
                yield
        except BaseException:
            self.broken = self._fragile
            raise


class TorchEngine(_Training):
    """Plain torch: every rank holds all parameters, gradients and optimiser state."""

    def __init__(self, module: nn.Module, recipe: Recipe, device: torch.device) -> None:
        super().__init__(module.to(device), recipe, device)
        self._call = _Compute(module, recipe, device)
        self._fragile = dist.is_initialized() and dist.get_world_size() > 1
        if self._fragile:
            self._call = DistributedDataParallel(self._call, gradient_as_bucket_view=True)
        self._adopt(self._trained)

    def _update(self, loss: Tensor) -> Tensor:
        loss.backward()
        parameters, max_norm = self._trained.values(), self._recipe.max_grad_norm
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        # On a CPU it costs less to look than to multiply all gradients by 1.
        if self._device.type != "cpu" or not norm <= max_norm:
            clip_grads_with_norm_(parameters, max_norm, norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    def weights(self) -> dict[str, Tensor]:
        """See Engine."""
        published = zip(self._trained, self._ema or self._trained.values(), strict=True)
        return {name: _cpu_copy(tensor) for name, tensor in published if self._rank == 0}


class ZeroEngine(_Training):
    """DeepSpeed ZeRO: the ranks share optimiser state (1), gradients (2) and parameters (3).

    At stage 3 the module's own parameters are empty outside of the engine's calls.
    """

    _fragile = True

    def __init__(self, module: nn.Module, recipe: Recipe, stage: int, device: torch.device) -> None:
        deepspeed: Any = _prepare_deepspeed(device)
        super().__init__(module, recipe, device)
        self._stage = stage
        parameters = list(self._trained.values())
        exact = [_cpu_copy(parameter) for parameter in parameters]
        self._call = self._engine = deepspeed.initialize(
            args=SimpleNamespace(device_rank=device.index or 0),
            model=_Compute(module, recipe, device),
            optimizer=self._optimizer,
            model_parameters=parameters,
            config=_zero_config(recipe, stage, sum(p.numel() for p in parameters)),
            dist_init_required=False,
        )[0]
        self._zero: Any = self._engine.optimizer
        # DeepSpeed makes the masters from parameters that it has rounded to bfloat16.
        for parameter, value in zip(parameters, exact, strict=True):
            self._set_master(parameter, value)
        held = "single_partition_of_fp32_groups" if stage < 3 else "fp32_partitioned_groups_flat"
        self._adopt({f"partition-{i}": m for i, m in enumerate(getattr(self._zero, held))})

    def _set_master(self, parameter: Any, value: Tensor) -> None:
        """Write this rank's part of a parameter's master, given its whole value."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        if self._stage != 3:
            safe_set_full_fp32_param(parameter, value)
            return
        # Stage 3's setter of whole values fails where the last rank's partition is padded.
        partition = torch.zeros(parameter.ds_tensor.numel())
        mine = value.flatten()[self._rank * partition.numel() :][: partition.numel()]
        partition[: mine.numel()] = mine
        safe_set_local_fp32_param(parameter, partition)

    def _update(self, loss: Tensor) -> Tensor:
        self._engine.backward(loss)
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        return torch.as_tensor(norm, dtype=torch.float32, device=self._device)

    def _spread_masters(self) -> None:
        self._engine.global_steps = self._engine.micro_steps = 0
        self._engine.global_samples = self._engine.skipped_steps = 0
        if self._stage != 3:
            self._zero.update_lp_params()
            return
        # As at the end of stage 3's own step; there is no public call for it.
        self._zero._partition_all_parameters()
        for index in range(len(self._masters)):
            self._zero._reassign_or_swap_out_partitioned_parameters(index)
        if kept_whole := self._zero.persistent_parameters:
            kept_whole[0].all_gather(kept_whole)

    @torch.no_grad()
    def weights(self) -> dict[str, Tensor]:
        """See Engine."""
        from deepspeed.utils import safe_get_full_fp32_param

        masters = self._masters.values()
        kept = [master.clone() for master in masters if self._ema]
        _copy_all(masters, self._ema)  # the average is gathered in the place of the masters
        gathered: dict[str, Tensor] = {}
        for name, parameter in self._trained.items():
            whole = safe_get_full_fp32_param(parameter)
            if self._rank == 0 and whole is not None:
                gathered[name] = _cpu_copy(whole)
        _copy_all(masters, kept)
        return gathered


class _Compute(nn.Module):
    """The module in the recipe's precision; DeepSpeed disables autocast outside of its engine.

    Autocast under ZeRO too keeps in float32 what needs it; bare bfloat16 inputs would not.
    """

    def __init__(self, module: nn.Module, recipe: Recipe, device: torch.device) -> None:
        super().__init__()
        self.module = module
        self._device_type, self._bf16 = device.type, recipe.precision == "bf16"

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        with torch.autocast(self._device_type, torch.bfloat16, enabled=self._bf16):
            output = self.module(*args, **kwargs)
        return (output if isinstance(output, Tensor) else output[0]).float()


def _zero_config(recipe: Recipe, stage: int, num_elements: int) -> dict[str, Any]:
    n = min(num_elements, 50_000_000)  # at every step DeepSpeed makes a buffer of this size
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": recipe.max_grad_norm,
        "zero_allow_untested_optimizer": True,
        # The overflow check would read every gradient once more and wait for the device.
        "bf16": {"enabled": recipe.precision == "bf16", "check_grad_overflow": False},
        "zero_optimization": {"stage": stage, "reduce_bucket_size": n, "allgather_bucket_size": n},
    }


def _prepare_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed for the device, without noise or compiler, in the present process group.

    Where there is no group, one of this process alone is made.
    """
    # DeepSpeed takes these two from the environment only.
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    os.environ.setdefault("LOCAL_RANK", str(device.index or 0))
    deprecated = r"`torch\.distributed\.\w+` is deprecated"
    warnings.filterwarnings("ignore", message=deprecated, category=FutureWarning)
    import deepspeed
    import deepspeed.ops
    from deepspeed.accelerator import get_accelerator

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    name = getattr(get_accelerator(), "_name", None)
    if name != device.type:
        raise TrainError(f"DeepSpeed here uses {name}, not {device.type}: check DS_ACCELERATOR")
    # Else init_distributed compiles a C++ operator that only inference uses.
    deepspeed.ops.__dict__.setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False
    backend = "nccl" if device.type == "cuda" else "gloo"
    if not dist.is_initialized():
        alone = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group(backend, store=alone, rank=0, world_size=1)
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    return deepspeed


@contextmanager
def translated(device: torch.device) -> Iterator[None]:
    """Say in what a user can do that the device's memory was full. Raises OutOfMemory."""
    try:
        yield
    except torch.OutOfMemoryError as exc:
        fix = "lower batch_size or resolution, turn on gradient_checkpointing, or raise zero_stage"
        raise OutOfMemory(f"the memory of {device} does not hold this recipe: {fix}") from exc


def _copy_all(targets: Iterable[Tensor], sources: Iterable[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=False):  # either may be empty: no average
        target.copy_(source, non_blocking=True)


def _cpu_copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
