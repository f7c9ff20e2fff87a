"""A LoRA that another tool trained, as a published model: its record and its file.

Its record says where it came from instead of how it was trained. Which formats are read is
`reading`'s.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from dbray.bases import Base
from dbray.errors import RegistryError
from dbray.export.reading import read_adapter
from dbray.method.factors import Adapters, metadata_of, to_published
from dbray.method.lora import FILE
from dbray.records.models import REVISION_LENGTH, ModelRecord
from dbray.spec.canon import digest_json, utc_now
from dbray.spec.methods import Lora
from dbray.spec.recipe import Recipe
from dbray.spec.sections import Prior

JOB_ID = "import"


@dataclass(frozen=True)
class Imported:
    """A model that is ready to be published."""

    record: ModelRecord
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class Naming:
    """What people call the subject of a LoRA; `identifier` is empty where none names it."""

    subject_id: str
    class_noun: str
    identifier: str = ""


def import_lora(file: Path, base: Base, naming: Naming) -> Imported:
    """Read a LoRA of any known format, for a base.

    Raises:
        RegistryError: it cannot be read, or a key in it names no layer of the base.
    """
    data = _read(file)
    try:
        tensors, about = load(data), metadata_of(data)
    except (SafetensorError, ValueError, KeyError) as exc:
        raise RegistryError(f"{file} is not a safetensors file: {exc}") from exc
    if bad := [key for key, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise RegistryError(f"{file}: {min(bad)!r} is not finite; export the LoRA again")
    try:
        adapter = read_adapter(tensors, about, layer_shapes(base))
    except RegistryError as exc:
        raise RegistryError(f"{file}: {exc}") from exc
    is_half = all(tensor.dtype == torch.float16 for tensor in tensors.values() if tensor.ndim > 1)
    published, config = to_published(adapter)
    if is_half:  # as exact as the file
        published = {key: tensor.half() for key, tensor in published.items()}
    recipe = _recipe(adapter, is_half)
    digest = hashlib.sha256(data).hexdigest()
    return Imported(_record(base, naming, recipe, file, digest), {FILE: save(published, config)})


def layer_shapes(base: Base) -> dict[str, tuple[int, ...]]:
    """Shape of the weight of each layer that a LoRA of a base may change, by '<part>.<path>'."""
    parts = (base.family.denoiser, *base.family.text_encoders)
    return {
        f"{part}.{name.removesuffix('.weight')}": shape
        for part in parts
        for name, shape in base.layout.shapes(part).items()
        if name.endswith(".weight") and len(shape) > 1
    }


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as exc:
        raise RegistryError(f"{file} cannot be read: {exc.strerror}; give a LoRA as a safetensors "
                            "file") from exc  # fmt: skip


def _recipe(adapter: Adapters, is_half: bool) -> Recipe:
    """The commonest rank and alpha; the file has those of each layer."""
    [(rank, alpha)] = [one for one, _ in Counter(
        (factors.rank, factors.alpha) for factors in adapter.values()
    ).most_common(1)]  # fmt: skip
    has_magnitudes = any(factors.magnitude is not None for factors in adapter.values())
    method = Lora(rank=rank, alpha=alpha or None, dora=has_magnitudes)
    return Recipe(method=method, prior_weight=0, publish_precision="fp16" if is_half else "fp32")


def _record(base: Base, naming: Naming, recipe: Recipe, file: Path, digest: str) -> ModelRecord:
    source = {"imported_from": file.name, "imported_sha256": digest}
    fingerprint = digest_json({
        "imported": digest, "base": base.digest, "subject": naming.subject_id,
        "class_noun": naming.class_noun, "identifier": naming.identifier,
    })  # fmt: skip
    return ModelRecord(
        id=naming.subject_id,
        revision=fingerprint[:REVISION_LENGTH],
        fingerprint=fingerprint,
        class_noun=naming.class_noun,
        identifier=naming.identifier,
        base=base.name,
        base_revision=base.revision,
        base_digest=base.digest,
        recipe=recipe,
        prior=Prior(),
        prior_digest=None,
        seed=0,
        image_digests=(),
        versions={"dbray": metadata.version("dbray")},
        timings={},
        steps=0,
        files=(FILE,),
        created_at=utc_now(),
        job_id=JOB_ID,
        metadata=source,
    )
