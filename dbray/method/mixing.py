"""Models side by side: in one batch of a denoiser, every row computes with its own model's factors.

Owns which models can be mixed, and how a denoiser computes with several of them for a block. Its
resident weights stay those of the base. A row costs a little more than with merged weights.

Shape suffixes as in `low_rank`; N members.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from dbray.bases.resident import Weights
from dbray.method.adapter import slot_layer, takes_slots
from dbray.method.factors import Factors
from dbray.method.lora import Merged
from dbray.method.low_rank import LowRank, Routing, SlotLayer
from dbray.method.tokens import Rows
from dbray.method.with_tokens import Together, kinds_of


@dataclass(frozen=True)
class Member:
    """What one model adds to the base.

    Attributes:
        layers: factors by path of the denoiser's layers.
        text: what it writes into the text encoders before its prompts are encoded, if anything.
    """

    layers: Mapping[str, Factors] = field(default_factory=dict)
    text: Weights | None = None


UNTOUCHED = Member()
"""The base itself."""


def mixable_layers(denoiser: nn.Module) -> frozenset[str]:
    """Return the paths of the layers that can have slots; not during a block of `mixed`."""
    return frozenset(path for path, one in denoiser.named_modules() if takes_slots(one))


def member_of(weights: Weights | None, part: str, mixable: Collection[str]) -> Member | None:
    """Return what a model adds to the base; None if it has to be alone in the resident weights.

    `part` is the name of the denoiser, and `mixable` are its layers that can have slots. Models
    with whole weights are alone, and those with DoRA, whose norms are computed from whole weights.
    """
    layers: dict[str, Factors] = {}
    text: list[Weights] = []
    for kind in kinds_of(weights) if weights else ():
        if isinstance(kind, Merged):
            layers |= {
                name.removesuffix(".weight"): factors
                for (owner, name), factors in kind.layers.items()
                if owner == part
            }
            others = {key: f for key, f in kind.layers.items() if key[0] != part}
            text += [Merged(others)] if others else []
        elif isinstance(kind, Rows):
            text.append(kind)
        else:
            return None
    for path, factors in layers.items():
        if factors.magnitude is not None or path not in mixable:
            return None
    return Member(layers, Together(tuple(text)) if text else None)


@contextmanager
def mixed(denoiser: nn.Module, members: Sequence[Member], repeats: int = 1) -> Iterator[None]:
    """Compute each row of a batch with its own member's factors, for a block.

    A batch has a row for each member, `repeats` times: the second time those of negative prompts.
    Only layers that a member changes compute more than the base; members that do not change such a
    layer have zeros in it. A row's result does not depend on the other rows' factors.
    """
    paths = dict.fromkeys(path for member in members for path in member.layers)
    replaced = {path: denoiser.get_submodule(path) for path in paths}
    try:
        for path, layer in replaced.items():
            factors_N = [member.layers.get(path) for member in members]
            denoiser.set_submodule(path, _side_by_side(layer, factors_N, repeats))
        yield
    finally:
        for path, layer in replaced.items():
            denoiser.set_submodule(path, layer)


@torch.no_grad()
def _side_by_side(layer: nn.Module, factors_N: Sequence[Factors | None], repeats: int) -> SlotLayer:
    """Return a layer with one slot per row, padded with zeros to the largest rank."""
    rank = max(factors.rank for factors in factors_N if factors)
    num_members, num_rows = len(factors_N), len(factors_N) * repeats
    # Without slots of its own: those of the batch take their place.
    slots = slot_layer(layer, LowRank(rank, alpha=rank, slots=0), Routing())
    down_BRI = slots.down.new_zeros(num_rows, rank, slots.down.shape[1])
    up_BOR = slots.up.new_zeros(num_rows, slots.up.shape[2], rank)
    for member, factors in enumerate(factors_N):
        if factors:
            rows = slice(member, None, num_members)
            down_BRI[rows, : factors.rank] = factors.down.flatten(1)
            up_BOR[rows, :, : factors.rank] = factors.up.flatten(1)
            up_BOR[rows] *= factors.alpha / factors.rank
    slots.down.data, slots.up.data = down_BRI.transpose(1, 2), up_BOR.transpose(1, 2)
    slots.scale = slots.scale.new_ones(num_rows)
    return slots
