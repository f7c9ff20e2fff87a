"""Several subjects that take their steps together, each in a slot of one resident module.

A slot is one subject's share of the trained parameters, which are stacked along their first
dimension. The rows of all slots pass through the frozen base in one batch; each slot has its own
loss, clipping, AdamW, moving average and number of steps: it is an engine like any other. Does not
know what the parameters mean, nor lanes.

A subject's weights depend on the number of slots, because products of other shapes round otherwise,
and on nothing else of the pack: the batch always has the same shape, and empty slots have rows that
count for nothing. Only its own slot contributes to a row, so that a slot whose numbers are not
finite harms no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dbray.bases.condition import Condition
from dbray.spec.recipe import Recipe
from dbray.spec.resources import Resources
from dbray.training.batches import Batch
from dbray.training.device import translated
from dbray.training.engine import Engine, make_engine, settle_types
from dbray.training.loop import Course, take_step
from dbray.training.plain import Whole, in_precision, trained_of
from dbray.training.rates import Rate


@dataclass(frozen=True)
class Slots:
    """The slots of a module."""

    num: int
    assign: Callable[[Tensor | None], None]
    """Sets the slot of each row of the next batches; None: equal shares in slot order."""


class Pack(Protocol):
    """Slots that take their steps together."""

    @property
    def engines(self) -> Sequence[Engine]:
        """The engine of each slot."""
        ...

    def step(self, courses: Mapping[int, Course]) -> None:
        """Take the next step of some courses, by slot."""

    def alone(self, slot: int) -> AbstractContextManager[None]:
        """Let the resident models compute with one slot, whatever the rows, meanwhile."""
        ...


class Alone:
    """A pack of one slot, whose engine may be of any kind."""

    def __init__(self, engine: Engine) -> None:
        self.engines = (engine,)

    def step(self, courses: Mapping[int, Course]) -> None:
        """See Pack."""
        for slot, course in courses.items():
            take_step(self.engines[slot], course)

    def alone(self, slot: int) -> AbstractContextManager[None]:
        """See Pack."""
        return nullcontext()


class Packed:
    """A pack of several slots on one device, with plain torch."""

    def __init__(
        self,
        module: nn.Module,
        recipe: Recipe,
        resources: Resources,
        device: torch.device,
        rates: Mapping[str, Rate],
        slots: Slots,
    ) -> None:
        self.module, self.device, self.slots = module.to(device), device, slots
        self.stacked = trained_of(module)
        self._call = in_precision(module, recipe, resources, device)
        self._rows_per_slot = recipe.batch_size * (2 if recipe.prior_weight > 0 else 1)
        self.engines = tuple(Slot(self, number, recipe, rates) for number in range(slots.num))

    def call(self, rows_B: Tensor | None, *args: Any) -> Tensor:
        """Call the module with rows that belong to these slots."""
        self.slots.assign(rows_B)
        return self._call(*args)

    def step(self, courses: Mapping[int, Course]) -> None:
        """See Pack. Where it raises before the slots' own updates, none has been changed."""
        drawn = {slot: course.draw() for slot, course in courses.items()}
        batches = {slot: batch for slot, [batch] in drawn.items()}
        with translated(self.device):
            predictions = self._predict(batches)
            losses = {
                slot: course.loss(batches[slot], predictions[slot])
                for slot, course in courses.items()
            }
            self.descend(losses)

    @contextmanager
    def alone(self, slot: int) -> Iterator[None]:
        """See Pack."""

        def assign(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            rows = next(one for one in (*args, *named.values()) if isinstance(one, Tensor))
            self.slots.assign(torch.full((len(rows),), slot, device=self.device))

        hooks = [
            model.register_forward_pre_hook(assign, with_kwargs=True)
            for model in self.module.children()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _predict(self, batches: Mapping[int, Batch]) -> list[Tensor]:
        """Call the module with all batches; return the predictions of each slot's rows."""
        filler = next(iter(batches.values()))
        rows = [_filled(batches.get(n, filler), self._rows_per_slot) for n in range(self.slots.num)]
        prediction = self.call(
            None,
            torch.cat([noisy for noisy, _, _ in rows]),
            torch.cat([timesteps for _, timesteps, _ in rows]),
            Condition.cat([condition for _, _, condition in rows]).tensors,
        )
        shares = prediction.split(self._rows_per_slot)
        sizes = [len(batches.get(n, filler).noisy_BCHW) for n in range(self.slots.num)]
        return [share[:size] for share, size in zip(shares, sizes, strict=True)]

    def descend(self, losses: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Update the slots that have a loss; return the norms of their gradients.

        Where the backward pass raises, no slot is changed.
        """
        try:
            # Each loss is a root of its own: in a sum, one that is not finite would spoil all.
            torch.autograd.backward(list(losses.values()))
            return self._update(losses)
        finally:
            for parameter in self.stacked.values():
                parameter.grad = None

    def _update(self, slots: Iterable[int]) -> dict[int, Tensor]:
        try:
            return {slot: self.engines[slot].descend() for slot in slots}
        except BaseException:  # some have taken the step and others have not
            for engine in self.engines:
                engine.broken = True
            raise


class Slot(Whole):
    """The engine of one slot: its parameters are views of the stacked ones."""

    def __init__(
        self, pack: Packed, number: int, recipe: Recipe, rates: Mapping[str, Rate]
    ) -> None:
        self._pack, self._number, self._fragile = pack, number, False
        shares = {name: self._share(stacked) for name, stacked in pack.stacked.items()}
        super().__init__(pack.module, recipe, pack.device, rates, shares)
        self._call = self._alone
        self._adopt(self._trained)

    def _share(self, stacked: Tensor) -> Tensor:
        size = len(stacked) // self._pack.slots.num
        return stacked.detach()[self._number * size :][:size]

    def _alone(self, latents_BCHW: Tensor, *args: Any) -> Tensor:
        """Call the module with rows of this slot alone."""
        rows_B = torch.full((len(latents_BCHW),), self._number, device=latents_BCHW.device)
        return self._pack.call(rows_B, latents_BCHW, *args)

    def _update(self, loss: Tensor) -> Tensor:
        return self._pack.descend({self._number: loss})[self._number]

    def descend(self) -> Tensor:
        """Take a step by this slot's share of the stacked gradients; return its norm."""
        for name, parameter in self._trained.items():
            gradient = self._pack.stacked[name].grad
            parameter.grad = None if gradient is None else self._share(gradient)
        return self._advance(self._descend)


def _filled(batch: Batch, num_rows: int) -> tuple[Tensor, Tensor, Condition]:
    """Return a batch's noisy latents, timesteps and condition, repeated up to a number of rows."""
    if len(batch.noisy_BCHW) == num_rows:
        return batch.noisy_BCHW, batch.timesteps_B, batch.condition
    index = torch.arange(num_rows) % len(batch.noisy_BCHW)
    condition = {name: tensor[index] for name, tensor in batch.condition.tensors.items()}
    return batch.noisy_BCHW[index], batch.timesteps_B[index], Condition(condition)


def make_pack(
    module: nn.Module,
    recipe: Recipe,
    resources: Resources,
    device: torch.device,
    rates: Mapping[str, Rate],
    slots: Slots,
) -> Pack:
    """Make the pack of a module with slots, which is the pack's now; see `make_engine`."""
    if slots.num == 1:
        return Alone(make_engine(module, recipe, resources, device, rates))
    settle_types(module, recipe, device)
    with translated(device):
        return Packed(module, recipe, resources, device, rates, slots)
