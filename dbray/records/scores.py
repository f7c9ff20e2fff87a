"""The stored scores of a model: the annex "scores".

Owns its layout: `request.json` describes what was sampled and the embedders, `scores.json` has the
figures and the flags. Does not know how they are computed: see dbray.scores.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from pydantic import ValidationError

from dbray.records.annexes import Annex
from dbray.scores.flags import flags_of
from dbray.scores.values import Scores
from dbray.storage.store import Store

__all__ = ["FIGURES", "REQUEST", "Scores", "annex", "files_of", "read", "read_all"]

REQUEST, FIGURES = "request.json", "scores.json"
_ANNEX = "scores"
_READERS = 16


def annex(store: Store, model: str) -> Annex:
    """Return the scores of a model, given as 'id@revision'."""
    return Annex(store, model, _ANNEX)


def files_of(scores: Scores, request: dict[str, bytes]) -> dict[str, bytes]:
    """Make the files of the annex; `request` is the file that describes what was measured."""
    flags = [flag._asdict() for flag in flags_of(scores)]
    text = json.dumps(scores.model_dump() | {"flags": flags}, indent=1)
    return {FIGURES: text.encode(), **request}


def read(store: Store, model: str) -> Scores | None:
    """Return a model's scores; None if it has none, or they are damaged. Raises StoreError."""
    content = annex(store, model).file(FIGURES)
    try:
        return None if content is None else Scores.model_validate_json(content)
    except ValidationError:
        return None


def read_all(store: Store, models: Iterable[str]) -> list[Scores | None]:
    """Return the scores of many models, in their order. Raises StoreError."""
    with ThreadPoolExecutor(_READERS) as threads:
        return list(threads.map(lambda model: read(store, model), models))
