"""Layers with the low-rank factors of several subjects, in slots.

Owns a layer's factors, its forward pass, and how a slot is merged into its weight. `adapter`
decides which layers of a module have slots. PEFT's layers are the reference.

A slot has one subject's factors; every row of a batch belongs to one slot. A row's output and a
slot's gradients depend only on that slot, whatever the others contain, NaN included. Shape
suffixes: S slots, B rows, G groups of rows of one slot each, N the rows and positions of a group,
I inputs (of a convolution: channels x height x width of its kernel), R rank, O outputs.

Sources: Hu et al. 2021 (arXiv 2106.09685); Liu et al. 2024 (arXiv 2402.09353), DoRA.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias, cast

import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from torch import Tensor, nn

from dbray.errors import TrainError


@dataclass(frozen=True)
class LowRank:
    """The size of the factors: `alpha / rank` scales a slot; `is_dora` adds learnt magnitudes."""

    rank: int
    alpha: float
    slots: int = 1
    is_dora: bool = False


@dataclass
class Routing:
    """Which slot each row of a batch uses; one object, shared by all layers of an adapter."""

    rows_B: Tensor | None = None  # None: the rows are equal, contiguous shares in slot order
    is_active: bool = True  # False: the layers compute with their resident weights only


class _SlotLayer(nn.Module):
    """The common part of linear layers and convolutions with slots.

    They keep the resident layer's own `weight` and `bias` under their names, and add the float32
    parameters `down` (S, I, R), `up` (S, R, O) and, for DoRA, `magnitude` (S, O).
    """

    weight: Tensor
    shape: torch.Size  # of the weight, which under ZeRO 3 is empty between two calls
    scale: Tensor
    magnitude: nn.Parameter | None

    def _add_slots(self, form: LowRank, routing: Routing) -> None:
        self.shape = self.weight.shape
        outputs, inputs = self.weight.flatten(1).shape
        device, slots = self.weight.device, form.slots
        self.down = nn.Parameter(torch.zeros(slots, inputs, form.rank, device=device))
        self.up = nn.Parameter(torch.zeros(slots, form.rank, outputs, device=device))
        magnitude = self._base_norms().repeat(slots, 1) if form.is_dora else None
        self.magnitude = None if magnitude is None else nn.Parameter(magnitude)
        scale = torch.ones(slots, device=device)  # a reset or load sets it
        self.register_buffer("scale", scale, persistent=False)
        self._routing = routing

    def _base_norms(self) -> Tensor:
        return self.weight.detach().flatten(1).float().norm(dim=1)

    def _factors(self, num_rows: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return down, scaled up, and DoRA's gain (or None) of each group of rows, in float32."""
        rows_B = self._routing.rows_B
        num_groups = len(self.down) if rows_B is None else num_rows
        if num_rows % num_groups or (rows_B is not None and len(rows_B) != num_rows):
            assigned = f"{num_groups} slots" if rows_B is None else f"{len(rows_B)} assigned rows"
            raise TrainError(f"a batch of {num_rows} rows does not fit {assigned}")
        down, up, scale, magnitude = self.down, self.up, self.scale, self.magnitude
        if rows_B is not None:
            down, up, scale = down[rows_B], up[rows_B], scale[rows_B]
            magnitude = None if magnitude is None else magnitude[rows_B]
        up = up * scale.view(-1, 1, 1)
        gain = None
        if magnitude is not None:
            # The paper's section 4.3: no gradient flows through the norm.
            gain = magnitude / self._adapted(self.weight, down, up).norm(dim=2)
        return down, up, gain

    @staticmethod
    @torch.no_grad()
    def _adapted(weight: Tensor, down_GIR: Tensor, up_GRO: Tensor) -> Tensor:
        """Return base weights plus the product of the factors, (G, O, I), always in float32."""
        with torch.autocast(weight.device.type, enabled=False):
            base_GOI = weight.flatten(1).float().expand(len(up_GRO), -1, -1)
            return torch.baddbmm(base_GOI, up_GRO.transpose(1, 2), down_GIR.transpose(1, 2))

    @torch.no_grad()
    def merge(self, slot: int, base_weight: Tensor) -> None:
        """Write `base_weight` with a slot's factors into the resident weight."""
        base_weight = base_weight.to(self.weight.device)
        up = self.up[slot : slot + 1] * self.scale[slot]
        adapted_OI = self._adapted(base_weight, self.down[slot : slot + 1], up)[0]
        if self.magnitude is not None:
            adapted_OI *= (self.magnitude[slot] / adapted_OI.norm(dim=1)).unsqueeze(1)
        self.weight.copy_(adapted_OI.view_as(self.weight))

    @torch.no_grad()
    def reset(self, slot: int, generator: torch.Generator) -> None:
        """Initialise a slot as PEFT does, from the generator only: it has no effect yet."""
        drawn_RI = torch.empty(self.down.shape[2], self.down.shape[1])
        nn.init.kaiming_uniform_(drawn_RI, a=math.sqrt(5), generator=generator)
        self.down[slot] = drawn_RI.T.to(self.down.device)
        self.clear(slot)

    @torch.no_grad()
    def clear(self, slot: int) -> None:
        """Make a slot have no effect."""
        self.up[slot] = 0
        if self.magnitude is not None:
            self.magnitude[slot] = self._base_norms()


class LowRankLinear(_SlotLayer, nn.Linear):
    """A linear layer with slots."""

    def __init__(self, base: nn.Linear, form: LowRank, routing: Routing) -> None:
        # "meta" allocates nothing: the parameters are those of the resident layer.
        nn.Linear.__init__(self, base.in_features, base.out_features, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self._add_slots(form, routing)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (nn.Linear's own name)
        """Compute the layer with each row's slot; rows are the first dimension."""
        if not self._routing.is_active:
            return F.linear(input, self.weight, self.bias)
        down, up, gain = self._factors(len(input))
        base = F.linear(input, self.weight, self.bias if gain is None else None)
        x_GNI = input.reshape(len(down), -1, self.in_features)
        hidden_GNR = torch.bmm(x_GNI, down.to(input.dtype))
        base_GNO = base.view(len(down), -1, self.out_features)
        out_GNO = torch.baddbmm(base_GNO, hidden_GNR, up.to(base.dtype))
        if gain is not None:
            out_GNO = out_GNO * gain.unsqueeze(1).to(base.dtype)
            out_GNO = out_GNO if self.bias is None else out_GNO + self.bias
        return out_GNO.view(base.shape)


class LowRankConv2d(_SlotLayer, nn.Conv2d):
    """A convolution with slots: `down` is a convolution of the same kernel, `up` is pointwise."""

    def __init__(self, base: nn.Conv2d, form: LowRank, routing: Routing) -> None:
        kernel = cast("tuple[int, int]", base.kernel_size)
        channels = (base.in_channels, base.out_channels)
        nn.Conv2d.__init__(self, *channels, kernel, device="meta")
        self.stride, self.padding, self.dilation = base.stride, base.padding, base.dilation
        self.weight, self.bias = base.weight, base.bias
        self._add_slots(form, routing)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (nn.Conv2d's own name)
        """Compute the layer with each row's slot; rows are the first dimension."""
        if not self._routing.is_active:
            return self._conv_forward(input, self.weight, self.bias)
        down, up, gain = self._factors(len(input))
        base = self._conv_forward(input, self.weight, self.bias if gain is None else None)
        kernels = down.transpose(1, 2).reshape(-1, *self.weight.shape[1:]).to(input.dtype)
        pointwise = up.transpose(1, 2).reshape(-1, up.shape[1], 1, 1).to(base.dtype)
        # The groups of rows become groups of channels: one call computes all of them.
        hidden = self._convolve(_rows_to_channels(input, len(down)), kernels, len(down))
        delta = F.conv2d(hidden, pointwise, groups=len(down))
        out = base + _channels_to_rows(delta, len(down))
        if gain is not None:
            gain_BO11 = gain.repeat_interleave(len(input) // len(down), dim=0)[..., None, None]
            out = out * gain_BO11.to(base.dtype)
            out = out if self.bias is None else out + self.bias.view(-1, 1, 1)
        return out

    def _convolve(self, x: Tensor, kernels: Tensor, groups: int) -> Tensor:
        return F.conv2d(x, kernels, None, self.stride, self.padding, self.dilation, groups)


def _rows_to_channels(x: Tensor, groups: int) -> Tensor:
    """(G * N, C, H, W) -> (N, G * C, H, W)."""
    return x.unflatten(0, (groups, -1)).transpose(0, 1).flatten(1, 2)


def _channels_to_rows(x: Tensor, groups: int) -> Tensor:
    """(N, G * C, H, W) -> (G * N, C, H, W)."""
    return x.unflatten(1, (groups, -1)).transpose(0, 1).flatten(0, 1)


SlotLayer: TypeAlias = LowRankLinear | LowRankConv2d
