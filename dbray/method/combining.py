"""Several low-rank models as one: their changes of the base are added up, each with a weight.

The factors of a layer are concatenated to factors of a higher rank, whose product is the weighted
sum of the products. Learnt embeddings are joined: they name subjects, so a weight does not scale
them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from dbray.bases.resident import Weights
from dbray.errors import BaseError
from dbray.method.factors import Factors
from dbray.method.lora import Merged
from dbray.method.tokens import Rows
from dbray.method.with_tokens import Together, kinds_of

Weighted = tuple[Weights, float]


def combined(models: Sequence[Weighted]) -> Weights:
    """Return the weighted sum of models; a single one of weight 1 is returned unchanged.

    Raises:
        BaseError: a model is not low-rank, or two have embeddings of the same token.
    """
    if len(models) == 1 and models[0][1] == 1:
        return models[0][0]
    kinds = [(kind, weight) for model, weight in models for kind in kinds_of(model)]
    merged = [(kind, weight) for kind, weight in kinds if isinstance(kind, Merged)]
    rows = [kind for kind, _ in kinds if isinstance(kind, Rows)]
    if len(merged) + len(rows) < len(kinds):
        raise BaseError("only low-rank models can be combined or weighted")
    found: list[Weights] = []
    if merged:
        found.append(_sum(merged))
    if rows:
        found.append(_union(rows))
    return found[0] if len(found) == 1 else Together(tuple(found))


def _sum(models: Sequence[tuple[Merged, float]]) -> Merged:
    layers = dict.fromkeys(layer for model, _ in models for layer in model.layers)
    return Merged({
        layer: _concatenated((model.layers[layer], w) for model, w in models
                             if layer in model.layers)
        for layer in layers
    })  # fmt: skip


def _concatenated(models: Iterable[tuple[Factors, float]]) -> Factors:
    """Return factors in float32 that need no further scale: alpha equals the rank."""
    downs, ups = list[Tensor](), list[Tensor]()
    for factors, weight in models:
        if factors.magnitude is not None:
            raise BaseError("models with DoRA cannot be combined or weighted")
        downs.append(factors.down.float())
        ups.append(factors.up.float() * (weight * factors.alpha / factors.rank))
    down = torch.cat(downs)
    return Factors(down, torch.cat(ups, dim=1), alpha=len(down))


def _union(models: Sequence[Rows]) -> Rows:
    rows: dict[str, tuple[tuple[int, ...], Tensor]] = {}
    names: dict[str, str] = {}
    for model in models:
        names |= model.names
        for part, (ids, tensor) in model.rows.items():
            known, before = rows.get(part, ((), tensor[:0]))
            if not set(known).isdisjoint(ids):
                raise BaseError("two of the models learnt the same token: train one of them again "
                                "with another identifier")  # fmt: skip
            rows[part] = (*known, *ids), torch.cat([before, tensor])
    return Rows(rows, names)
