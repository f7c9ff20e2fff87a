"""The stored scores of a model: the annex "scores".

Owns its layout: `request.json` describes what was sampled and the embedders, `scores.json` has the
figures. Does not know how they are computed: see dbray.scores.
"""

from __future__ import annotations

import json

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dbray.records.annexes import Annex
from dbray.storage.store import Store

REQUEST, FIGURES = "request.json", "scores.json"
_ANNEX = "scores"


class Scores(BaseModel):
    """The figures of a model; cosines are from -1 to 1, shares from 0 to 1.

    Fields with `base_` are for the untouched base, with the same prompts and seeds.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    identity: float = Field(description="Mean cosine of generated images and photographs.")
    base_identity: float = Field(description="The same for the base, which never saw the subject.")
    ceiling: float = Field(description="Mean cosine of the subject's photographs to each other.")
    nearest: float = Field(description="Share of images whose nearest subject is the right one.")
    precision: float = Field(description="Mean average precision among look-alikes.")
    num_lookalikes: int = Field(description="Other subjects of the class noun to compare with.")
    prompt: float | None = Field(description="Mean cosine of images and their prompts (CLIP-T).")
    base_prompt: float | None = Field(description="The same for the base.")
    drift: float = Field(description="1 - mean cosine to the base's images of class prompts.")
    preservation: float = Field(description="PRES: mean cosine of class images and photographs.")
    base_preservation: float = Field(description="The same for the base.")
    diversity: float = Field(description="DIV: mean 1 - cosine of images of one class prompt.")
    base_diversity: float = Field(description="The same for the base.")
    copies: float = Field(description="Share of images that nearly repeat a photograph.")


def annex(store: Store, model: str) -> Annex:
    """Return the scores of a model, given as 'id@revision'."""
    return Annex(store, model, _ANNEX)


def files_of(scores: Scores, request: dict[str, bytes]) -> dict[str, bytes]:
    """Make the files of the annex; `request` is the file that describes what was measured."""
    text = json.dumps(scores.model_dump(), indent=1)
    return {FIGURES: text.encode(), **request}


def read(store: Store, model: str) -> Scores | None:
    """Return a model's scores; None if it has none, or they are damaged. Raises StoreError."""
    content = annex(store, model).file(FIGURES)
    try:
        return None if content is None else Scores.model_validate_json(content)
    except ValidationError:
        return None
