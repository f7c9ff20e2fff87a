"""The engine of DeepSpeed ZeRO; sole importer of DeepSpeed."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dbray.errors import TrainError
from dbray.spec.recipe import Recipe
from dbray.spec.resources import Resources
from dbray.training.plain import Training, copy_all, cpu_copy, in_precision, trained_of
from dbray.training.rates import Rate


class ZeroEngine(Training):
    """DeepSpeed ZeRO: the ranks share optimiser state (1), gradients (2) and parameters (3).

    At stage 3 the module's own parameters, frozen ones too, are empty outside of the engine's
    calls. A parameter that gets no gradient counts as one whose gradient is 0.
    """

    _fragile = True

    def __init__(
        self,
        module: nn.Module,
        recipe: Recipe,
        resources: Resources,
        device: torch.device,
        rates: Mapping[str, Rate],
    ) -> None:
        deepspeed: Any = _prepare_deepspeed(device)
        super().__init__(module, recipe, device, rates, trained_of(module))
        self._stage = resources.zero_stage
        parameters = list(self._trained.values())
        exact = [cpu_copy(parameter) for parameter in parameters]
        config = _zero_config(recipe, resources, device, sum(p.numel() for p in parameters))
        if self._stage == 3:
            _share_out(deepspeed, module, config, device)
        self._call = self._engine = deepspeed.initialize(
            args=SimpleNamespace(device_rank=device.index or 0),
            model=in_precision(module, recipe, resources, device),
            optimizer=self._optimizer,
            model_parameters=self._optimizer.param_groups,
            config=config,
            dist_init_required=False,
        )[0]
        self._zero: Any = self._engine.optimizer
        # DeepSpeed makes the masters from parameters that it has rounded to bfloat16.
        for parameter, value in zip(parameters, exact, strict=True):
            self._set_master(parameter, value)
        held = (
            "single_partition_of_fp32_groups" if self._stage < 3 else "fp32_partitioned_groups_flat"
        )
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
        self._spread()

    def _spread(self) -> None:
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
    def assign(self, values: Mapping[str, Tensor]) -> None:
        """See Engine."""
        for name, value in values.items():
            self._set_master(self._trained[name], value)
        if self._num_steps == 0:
            copy_all(self._ema, self._masters.values())
        self._spread()

    def current(self, name: str) -> Tensor:
        """See Engine."""
        from deepspeed.utils import safe_get_full_fp32_param

        whole = safe_get_full_fp32_param(self._trained[name])
        assert whole is not None
        return whole

    @torch.no_grad()
    def weights(self) -> dict[str, Tensor]:
        """See Engine."""
        from deepspeed.utils import safe_get_full_fp32_param

        gathered: dict[str, Tensor] = {}
        with self.averaged():
            for name, parameter in self._trained.items():
                whole = safe_get_full_fp32_param(parameter)
                if self._rank == 0 and whole is not None:
                    gathered[name] = cpu_copy(whole)
        return gathered


def _share_out(
    deepspeed: Any, module: nn.Module, config: dict[str, Any], device: torch.device
) -> None:
    """Bring one parameter after the other to the device and keep this rank's share of it.

    DeepSpeed by itself would bring the whole module first, which the device need not hold.
    """
    if config["bf16"]["enabled"]:
        for parameter in module.parameters():
            parameter.data = parameter.data.bfloat16()
    for buffer in module.buffers():
        buffer.data = buffer.data.to(device)
    deepspeed.zero.Init(module=module, config_dict_or_path=config)


def _zero_config(
    recipe: Recipe, resources: Resources, device: torch.device, num_elements: int
) -> dict[str, Any]:
    n = min(num_elements, 50_000_000)  # at every step DeepSpeed makes a buffer of this size
    zero: dict[str, Any] = {
        "stage": resources.zero_stage,
        "reduce_bucket_size": n,
        "allgather_bucket_size": n,
    }
    if resources.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": device.type == "cuda"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": recipe.max_grad_norm,
        "zero_allow_untested_optimizer": True,
        # The overflow check would read every gradient once more and wait for the device.
        "bf16": {"enabled": recipe.precision == "bf16", "check_grad_overflow": False},
        # torch's own AdamW updates on the CPU too; DeepSpeed's would be compiled first.
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
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
