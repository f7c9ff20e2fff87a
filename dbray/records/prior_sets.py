"""Stored PriorSets: their names, their files, and how they are read.

A PriorSet is the class images of one (base, class noun, Prior), stored in `priors/<digest>/` as
`prior.json` and parts of 16 images each, Parquet with the columns index, seed and png. A part's
number determines its images, so any part can be made again alone. Does not know how images are
sampled (see dbray.sampling.priors) or what they are for.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dbray.errors import DigestMismatch, FileMissing, StoreError
from dbray.spec.canon import digest_json
from dbray.spec.prompts import fill_prompt, has_an
from dbray.spec.sections import Prior, Sampler
from dbray.spec.super_resolution import SuperResolution
from dbray.storage.committed import Committed
from dbray.storage.store import Store
from dbray.subjects.images import decode_png

IMAGES_PER_PART = 16
DESCRIPTION = "prior.json"

_SCHEMA = pa.schema([("index", pa.int32()), ("seed", pa.int64()), ("png", pa.binary())])


@dataclass(frozen=True)
class Enlarging:
    """How a super-resolution network enlarges the images of another set."""

    base_digest: str
    """Of the network."""
    sampler: Sampler
    steps: int
    guidance: float
    noise_level: int

    @classmethod
    def of(cls, base_digest: str, section: SuperResolution) -> Enlarging:
        """Return what a section of a job says."""
        return cls(
            base_digest, section.sampler, section.steps, section.guidance, section.noise_level
        )


@dataclass(frozen=True)
class PriorPlan:
    """Everything that determines the images of a PriorSet."""

    base_digest: str
    class_noun: str
    prior: Prior
    enlarging: Enlarging | None = None
    """How the images are made from those of `source`; None: they are sampled from the text."""

    @property
    def source(self) -> PriorPlan:
        """The set whose images are enlarged."""
        return replace(self, enlarging=None)

    @property
    def sampled_by(self) -> str:
        """Digest of the base that makes the images."""
        return self.enlarging.base_digest if self.enlarging else self.base_digest

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of what determines the images: the name of the set."""
        return digest_json(
            {
                "base": self.base_digest,
                "class_noun": self.class_noun,
                "prior": self.prior.identity(),
                # The first versions wrote "a" before every class noun.
                **({"prompt": self.prompt} if has_an(self.prior.prompt, self.class_noun) else {}),
                **({"enlarging": asdict(self.enlarging)} if self.enlarging else {}),
            }
        )

    @property
    def folder(self) -> str:
        """Folder of the set in the store."""
        return folder_of(self.digest)

    @property
    def prompt(self) -> str:
        """The prompt of every image."""
        return fill_prompt(self.prior.prompt, self.class_noun)

    @property
    def num_parts(self) -> int:
        """Number of parts; the last may be shorter."""
        return -(-self.prior.count // IMAGES_PER_PART)

    @property
    def files(self) -> list[str]:
        """Names of all files of the finished set."""
        return [DESCRIPTION, *(part_name(part) for part in range(self.num_parts))]

    def indices(self, part: int) -> range:
        """Indices of the images in a part."""
        start = part * IMAGES_PER_PART
        return range(start, min(start + IMAGES_PER_PART, self.prior.count))


def folder_of(digest: str) -> str:
    """Return the folder of a PriorSet in a store."""
    return f"priors/{digest}"


def part_name(part: int) -> str:
    """Return the file name of a part."""
    return f"part-{part:05d}.parquet"


def encode_part(indices: Sequence[int], seeds: Sequence[int], pngs: Sequence[bytes]) -> bytes:
    """Return the file of a part: the same images give the same bytes."""
    table = pa.table([list(indices), list(seeds), list(pngs)], schema=_SCHEMA)
    out = io.BytesIO()
    # PNG does not compress further. The checksums verify a part that has no marker yet.
    pq.write_table(table, out, compression="none", use_dictionary=False, write_page_checksum=True)
    return out.getvalue()


def decode_part(data: bytes, name: str) -> pa.Table:
    """Read the file of a part and verify its page checksums. Raises StoreError."""
    try:
        table = pq.read_table(io.BytesIO(data), page_checksum_verification=True)
    except (OSError, pa.ArrowException) as exc:
        raise StoreError(f"{name} cannot be read: {exc}") from exc
    if not table.schema.equals(_SCHEMA):
        raise StoreError(f"{name} has columns {table.schema.names}, not {_SCHEMA.names}")
    return table


def is_made(store: Store, plan: PriorPlan) -> bool:
    """Return whether a PriorSet is published and undamaged."""
    return broken_files(store, plan) == []


def broken_files(store: Store, plan: PriorPlan) -> list[str] | None:
    """Return the names of missing and damaged files of a set; None if it is not published."""
    folder = Committed(store, plan.folder)
    try:
        known = folder.files
    except (FileMissing, DigestMismatch):  # without a marker no file can be verified
        return None
    return sorted({*folder.damaged(), *(set(plan.files) - known.keys())})


def has_part(store: Store, plan: PriorPlan, part: int) -> bool:
    """Return whether a part exists and is undamaged, also in an unpublished set."""
    broken = broken_files(store, plan)
    if broken is not None:
        return part_name(part) not in broken
    return store.exists(f"{plan.folder}/{part_name(part)}") and _is_whole(store, plan, part)


def missing_parts(store: Store, plan: PriorPlan) -> list[int]:
    """Return the numbers of the missing parts of an unpublished set."""
    there = set(store.names(plan.folder))
    return [
        part
        for part in range(plan.num_parts)
        if part_name(part) not in there or not _is_whole(store, plan, part)
    ]


def _is_whole(store: Store, plan: PriorPlan, part: int) -> bool:
    """Return whether a part of an interrupted set, which has no marker yet, can be kept."""
    path = f"{plan.folder}/{part_name(part)}"
    data = store.read_bytes(path)
    try:
        table = decode_part(data, path)
    except StoreError:
        return False
    return table["index"].to_pylist() == list(plan.indices(part))


def load_images(store: Store, digest: str) -> np.ndarray:
    """Read the class images of a PriorSet in order, uint8 (K, H, W, 3).

    Raises:
        DigestMismatch: a file differs from the published one.
        StoreError: the set is not published, or cannot be read.
    """
    folder = Committed(store, folder_of(digest))
    parts = [name for name in sorted(folder.files) if name != DESCRIPTION]
    return np.concatenate([_images_of(folder, name) for name in parts])


def load_part(store: Store, plan: PriorPlan, part: int) -> np.ndarray:
    """Read the images of one part of a published set; as `load_images`."""
    return _images_of(Committed(store, plan.folder), part_name(part))


def _images_of(folder: Committed, name: str) -> np.ndarray:
    table = decode_part(folder.read(name), name)
    return np.stack([decode_png(png) for png in table["png"].to_pylist()])


def describe(plan: PriorPlan, base_name: str, versions: dict[str, str]) -> dict[str, Any]:
    """Describe a set, without times: the same images have the same description."""
    return {
        "base": base_name,
        "base_digest": plan.base_digest,
        "class_noun": plan.class_noun,
        "prior": plan.prior.model_dump(mode="json"),
        "prompt": plan.prompt,
        "versions": versions,
        **({"enlarging": asdict(plan.enlarging)} if plan.enlarging else {}),
    }
