"""Requests for several models at once: their names, and which models can be added up.

Knows only records: whether the files fit is found when they are loaded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from dbray.records.models import ModelRecord
from dbray.serving.http.wire import MAX_MODELS, GenerationRequest
from dbray.serving.messages import BASE, Refusal, Refused
from dbray.spec.methods import Lora, TextualInversion

Named = list[tuple[str, float]]


def named(request: GenerationRequest, aliases: Mapping[str, str]) -> Named:
    """Return the names of the requested models with their weights; none for the base.

    An alias may stand for several models, which have its weight. Raises Refused.
    """
    names = [
        (name, weight)
        for given, weight in request.weighted
        for name in aliases.get(given, given).split("+")
    ]
    if names == [(BASE, 1.0)]:
        return []
    if any(name == BASE for name, _ in names):
        raise _refused("the base is part of every model: name it alone, or leave it out")
    if len(names) > MAX_MODELS:
        raise _refused(f"at most {MAX_MODELS} models can be added up")
    return names


def check(records: Sequence[ModelRecord], weights: Sequence[float]) -> None:
    """Check that models can be added up with these weights. Raises Refused."""
    if len(records) == 1 and weights[0] == 1:
        return
    if staged := [record.id for record in records if record.super_resolution is not None]:
        raise _refused(
            f"'{staged[0]}' has two stages, so it can only be drawn alone, with weight 1"
        )
    if not all(map(_is_low_rank, records)):
        name = next(record.id for record in records if not _is_low_rank(record))
        raise _refused(
            f"'{name}' is not a low-rank model (lora without dora, pivotal, textual_inversion), "
            "so it can only be drawn alone, with weight 1"
        )
    repeated, count = Counter(record.id for record in records).most_common(1)[0]
    if count > 1:
        raise _refused(f"'{repeated}' is named twice: give it one larger weight")
    bases = [{record.base_digest, record.serve_base_digest} - {None} for record in records]
    for record, digests in zip(records, bases, strict=True):
        if digests.isdisjoint(bases[0]):
            raise _refused(f"'{record.id}' was trained on another base than '{records[0].id}'")


def _is_low_rank(record: ModelRecord) -> bool:
    method = record.recipe.method
    return isinstance(method, TextualInversion) or (isinstance(method, Lora) and not method.dora)


def _refused(message: str) -> Refused:
    return Refused(Refusal(400, "not_combinable", f"Invalid 'model': {message}.", "model"))
