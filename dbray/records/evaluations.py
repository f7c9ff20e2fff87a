"""What an evaluation leaves in its folder: a Parquet file per model, a CSV, a report.

Owns the layout and the columns. A model's file is written last and atomically, with its scores and
the description of what was measured in the schema's metadata, so that an evaluation continues where
it stopped. `images/` is one Parquet data set. Does not know how images are scored.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from dbray.scores.flags import Flag, flags_of
from dbray.scores.values import Scores
from dbray.storage.store import Store, digest

logger = logging.getLogger(__name__)

FOLDER, TABLE, REPORT = "images", "subjects.csv", "report.html"
_REQUEST, _SCORES = b"dbray.request", b"dbray.scores"

SCHEMA = pa.schema(
    [
        ("subject", pa.string()),
        ("revision", pa.string()),
        ("class_noun", pa.string()),
        ("prompt", pa.string()),
        ("seed", pa.int64()),
        ("identity", pa.float32()),
        ("base_identity", pa.float32()),
        ("nearest", pa.string()),
        ("is_copy", pa.bool_()),
        ("clip_identity", pa.float32()),
        ("prompt_score", pa.float32()),
        ("base_prompt_score", pa.float32()),
        ("image", pa.binary()),
    ]
)
"""One row per image: `nearest` is the subject whose photographs it is nearest to, `image` WebP."""
_WITHOUT_IMAGES = [name for name in SCHEMA.names if name != "image"]


@dataclass(frozen=True)
class Evaluated:
    """One model's results."""

    id: str
    revision: str
    class_noun: str
    scores: Scores
    images: pa.Table
    """A row per image, without the images themselves, which may not fit in memory."""

    @property
    def name(self) -> str:
        """'id@revision'."""
        return f"{self.id}@{self.revision}"

    @property
    def flags(self) -> tuple[Flag, ...]:
        """Its faults."""
        return flags_of(self.scores)


def path_of(model: str) -> str:
    """Return the path of a model's file."""
    return f"{FOLDER}/{model}.parquet"


def write(
    store: Store, model: str, rows: Sequence[dict[str, Any]], scores: Scores, request: bytes
) -> None:
    """Write a model's file. `request` describes what was measured."""
    about = {_REQUEST: digest(request).encode(), _SCORES: scores.model_dump_json().encode()}
    table = pa.Table.from_pylist(list(rows), SCHEMA.with_metadata(about))
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    store.write_bytes(path_of(model), buffer.getvalue())


def read(store: Store, model: str, request: bytes) -> Evaluated | None:
    """Return a model's results; None if there are none of this request, or they are damaged."""
    path = path_of(model)
    if not store.exists(path):
        return None
    try:
        table = pq.read_table(io.BytesIO(store.read_bytes(path)), columns=_WITHOUT_IMAGES)
        about = table.schema.metadata or {}
        if about.get(_REQUEST) != digest(request).encode() or not len(table):
            return None
        scores = Scores.model_validate_json(about[_SCORES])
    except (pa.ArrowException, KeyError, ValidationError) as exc:
        logger.warning("ignoring damaged evaluation model=%s: %s", model, exc)
        return None
    first = table.slice(0, 1).to_pylist()[0]
    return Evaluated(first["subject"], first["revision"], first["class_noun"], scores, table)


def read_images(store: Store, model: str) -> list[bytes]:
    """Return a model's images, in the order of its rows. Raises StoreError."""
    content = io.BytesIO(store.read_bytes(path_of(model)))
    return pq.read_table(content, columns=["image"])["image"].to_pylist()


def write_table(store: Store, found: Sequence[Evaluated]) -> None:
    """Write the CSV with a row per model."""
    text = io.StringIO()
    names = list(Scores.model_fields)
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["subject", "revision", "class_noun", *names, "flags"])
    for one in found:
        flags = "; ".join(flag.words for flag in one.flags)
        values = json.loads(one.scores.model_dump_json()).values()
        table.writerow([one.id, one.revision, one.class_noun, *values, flags])
    store.write_bytes(TABLE, text.getvalue().encode())
