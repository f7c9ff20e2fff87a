"""The engine of plain torch, and what it shares with that of DeepSpeed.

Owns the float32 masters, AdamW, clipping, the moving average and the way back to the base weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import AdamW
from torch.optim.swa_utils import get_ema_multi_avg_fn

from dbray.errors import LaneLost, TrainError
from dbray.spec.recipe import Recipe
from dbray.spec.resources import Resources
from dbray.training.device import translated
from dbray.training.rates import Rate

COMPILER = "inductor"
"""What compiles a step, by torch's name for it."""


class Training:
    """What both engines share: masters, AdamW's state, the moving average, the base weights.

    A master is a float32 tensor that AdamW updates: a parameter, or under ZeRO a flat partition
    of many. Subclasses set `_call`, adopt their masters, and say how to `_update` and `weights`.
    """

    _call: Callable[..., Tensor]
    _fragile: bool  # whether an error leaves ranks or gradient buckets out of step

    def __init__(
        self,
        module: nn.Module,
        recipe: Recipe,
        device: torch.device,
        rates: Mapping[str, Rate],
        trained: Mapping[str, Tensor],
    ) -> None:
        self.module = module
        self._recipe, self._device = recipe, device
        self._rank = dist.get_rank() if dist.is_initialized() else 0
        self._trained = dict(trained)
        groups, self._rates = self._groups(rates)
        # Fused is the fastest on a GPU, and on a CPU six times as fast as foreach.
        rate, decay = recipe.learning_rate, recipe.weight_decay
        self._optimizer = AdamW(groups, lr=rate, weight_decay=decay, fused=True)
        self._num_steps, self.broken = 0, False

    def _groups(self, rates: Mapping[str, Rate]) -> tuple[list[dict[str, Any]], list[Rate]]:
        """Sort the parameters by their rates; those of the recipe come first."""
        usual = Rate(self._recipe.learning_rate, self._recipe.rate_schedule)
        groups: list[tuple[list[Any], Rate, dict[str, Any]]] = [
            ([p for name, p in self._trained.items() if name not in rates], usual, {})
        ]
        for rate in dict.fromkeys(rates.values()):
            group = [p for name, p in self._trained.items() if rates.get(name) == rate]
            groups.append((group, rate, {"weight_decay": 0.0}))
        kept = [(group, rate, others) for group, rate, others in groups if group]
        options = [{"params": group, "lr": rate.start, **others} for group, rate, others in kept]
        return options, [rate for _, rate, _ in kept]

    def _set_rates(self) -> None:
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate.at(self._num_steps, self._recipe)

    def _adopt(self, masters: Mapping[str, Tensor]) -> None:
        """Take over the masters, which hold the base weights."""
        self._masters = dict(masters)
        base = [cpu_copy(master) for master in self._masters.values()]
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
        """See Engine."""
        with self._guarded():
            return self._call(*args, **kwargs)

    def step(self, loss: Tensor) -> Tensor:
        """See Engine."""
        with self._guarded():
            return self._advance(partial(self._update, loss))

    def _advance(self, update: Callable[[], Tensor]) -> Tensor:
        """Count a step. The moving average's warm-up is that of CompVis/latent-diffusion's LitEma.

        `update` updates the masters, and returns the gradients' norm.
        """
        self._set_rates()
        norm = update()
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
        copy_all(self._masters.values(), self._base)
        copy_all(self._ema, self._base)
        for master in self._masters.values():
            master.grad = None
            for tensor in self._optimizer.state[master].values():
                tensor.zero_()
        self._num_steps = 0
        self._spread_masters()

    def _spread_masters(self) -> None:
        """Bring the weights that the module computes with up to date with the masters."""

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """See Engine."""
        masters = self._masters.values()
        kept = [master.detach().clone() for master in masters if self._ema]
        with torch.no_grad():
            copy_all(masters, self._ema)
        try:
            yield
        finally:
            with torch.no_grad():
                copy_all(masters, kept)

    def _tensors(self) -> dict[str, Tensor]:
        """Return the live tensors that make up the state, by name."""
        tensors = {f"ema/{name}": ema for name, ema in zip(self._masters, self._ema, strict=False)}
        for name, master in self._masters.items():
            held = {"master": master, **self._optimizer.state[master]}
            tensors |= {f"{key}/{name}": tensor for key, tensor in held.items()}
        return tensors

    def state(self) -> dict[str, Tensor]:
        """See Engine."""
        saved = {name: cpu_copy(tensor) for name, tensor in self._tensors().items()}
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


class Whole(Training):
    """Plain torch: the trained parameters are their own masters, whole on every rank."""

    def _descend(self) -> Tensor:
        """Clip the gradients and update the parameters; return the norm before clipping."""
        parameters, max_norm = self._trained.values(), self._recipe.max_grad_norm
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        # On a CPU it costs less to look than to multiply all gradients by 1.
        if self._device.type != "cpu" or not norm <= max_norm:
            clip_grads_with_norm_(parameters, max_norm, norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    @torch.no_grad()
    def assign(self, values: Mapping[str, Tensor]) -> None:
        """See Engine."""
        averages = dict(zip(self._masters, self._ema, strict=False))
        for name, value in values.items():
            self._trained[name].copy_(value)
            if name in averages and self._num_steps == 0:
                averages[name].copy_(value)

    def current(self, name: str) -> Tensor:
        """See Engine."""
        return self._trained[name].detach()

    def weights(self) -> dict[str, Tensor]:
        """See Engine."""
        published = zip(self._trained, self._ema or self._trained.values(), strict=True)
        return {name: cpu_copy(tensor) for name, tensor in published if self._rank == 0}


class TorchEngine(Whole):
    """The engine of plain torch, on one rank or several."""

    def __init__(
        self,
        module: nn.Module,
        recipe: Recipe,
        resources: Resources,
        device: torch.device,
        rates: Mapping[str, Rate],
    ) -> None:
        super().__init__(module.to(device), recipe, device, rates, trained_of(module))
        self._call = in_precision(module, recipe, resources, device)
        self._fragile = dist.is_initialized() and dist.get_world_size() > 1
        if self._fragile:
            # A base may have parameters that nothing reads, as the last layer of SDXL's first text
            # encoder. A static graph learns in the first step which never get a gradient.
            self._call = DistributedDataParallel(
                self._call, gradient_as_bucket_view=True, static_graph=True
            )
        self._adopt(self._trained)

    def _update(self, loss: Tensor) -> Tensor:
        loss.backward()
        return self._descend()


class InPrecision(nn.Module):
    """The module in the recipe's precision; DeepSpeed disables autocast outside of its engine.

    Autocast under ZeRO too keeps in float32 what needs it; bare bfloat16 inputs would not.
    """

    def __init__(self, module: nn.Module, recipe: Recipe, device: torch.device) -> None:
        super().__init__()
        self.module = module
        self._device_type, self._bf16 = device.type, recipe.precision == "bf16"

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Call the module; its (first) output in float32."""
        with torch.autocast(self._device_type, torch.bfloat16, enabled=self._bf16):
            output = self.module(*args, **kwargs)
        return (output if isinstance(output, Tensor) else output[0]).float()


def in_precision(
    module: nn.Module, recipe: Recipe, resources: Resources, device: torch.device
) -> InPrecision:
    """Wrap a module for an engine to call; compiled at the first call, where that is wanted."""
    wrapped = InPrecision(module, recipe, device)
    if resources.compile:
        wrapped.compile(backend=COMPILER)
    return wrapped


def trained_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that require gradients, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def copy_all(targets: Iterable[Tensor], sources: Iterable[Tensor]) -> None:
    """Copy each source over its target."""
    for target, source in zip(targets, sources, strict=False):  # either may be empty: no average
        target.copy_(source, non_blocking=True)


def cpu_copy(tensor: Tensor) -> Tensor:
    """Copy to the CPU, also from the CPU."""
    return tensor.detach().to("cpu", copy=True).contiguous()
