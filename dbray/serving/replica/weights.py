"""A published model's weights on their way from the registry to the device.

Owns the levels of a replica's cache: files on the local disk (only if the registry is remote),
their bytes in RAM as they were published, and tensors on the device in the compute precision. How
they are read and put into the resident models is the method's (`dbray.method.methods`).
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import shutil
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dbray.bases import Backbone
from dbray.bases.resident import Layout, Weights
from dbray.errors import BaseError, DbrayError, DigestMismatch, ModelNotFound, RegistryError
from dbray.method.methods import method_of
from dbray.records.models import Registry, Revision
from dbray.serving.messages import BROKEN, NOT_FOUND, OVERLOADED, STORAGE_DOWN, UNUSABLE, Refusal
from dbray.serving.replica.cache import CacheFull, TieredCache
from dbray.serving.replica.tiers import Level, Tier, Watcher
from dbray.spec.methods import MethodSettings

_log = logging.getLogger(__name__)

REMEMBERED = (RegistryError, DigestMismatch, BaseError)
"""Errors of unknown or corrupt models; other errors may pass."""


def published_bytes(layouts: Mapping[str, Layout]) -> int:
    """Memory of a model with all parts as it is published by default, in float16."""
    return sum(2 * _num_values(layout) for layout in layouts.values())


def _num_values(layout: Layout) -> int:
    return sum(shape.numel() for shape in layout.values())


@dataclass(frozen=True)
class Published:
    """A model's weights in a tier.

    If they are views of files, `contents` are the bytes of the files, and `digests` their SHA-256.
    """

    weights: Weights
    contents: Mapping[str, Tensor] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Memory in use."""
        if self.contents:
            return sum(content.nbytes for content in self.contents.values())
        return self.weights.size_bytes


@dataclass(frozen=True)
class Files:
    """A model's weight files on this machine; if they are copies, `folder` contains them."""

    method: MethodSettings
    paths: Mapping[str, Path]
    digests: Mapping[str, str]
    folder: Path | None = None

    def remove(self) -> None:
        """Remove the copies."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


class Source:
    """Reads a registry's models and checks that they are for this base."""

    def __init__(self, registry: Registry, backbone: Backbone, scratch: Path) -> None:
        self._registry = registry
        self._base_digest = backbone.base.digest
        self._device = backbone.device
        self._layouts = layouts = backbone.resident.layouts
        self._scratch = scratch
        self._spare = Spare()
        denoiser = backbone.base.family.denoiser
        self._spare.replace(int(published_bytes({denoiser: layouts[denoiser]}) * 1.02))

    def fetch(self, key: str, _below: None) -> tuple[Files, int]:
        """Level "disk": copies of the files, verified."""
        revision = self._open(key)
        folder = self._scratch / key.replace("@", "/")
        try:
            paths = revision.fetch_weights(folder)
        except DbrayError:
            shutil.rmtree(folder, ignore_errors=True)  # no tier counts a part of a copy
            raise
        files = Files(revision.record.recipe.method, paths, revision.digests, folder)
        return files, sum(file.stat().st_size for file in paths.values())

    def read(self, key: str, files: Files | None) -> tuple[Published, int]:
        """Level "ram": the files' bytes; they fit the base, but are not yet verified."""
        files = files or self._published(key)
        contents = {name: _read(file, self._spare) for name, file in files.paths.items()}
        weights = method_of(files.method).read(contents, self._layouts)
        model = Published(weights, contents, files.digests)
        return model, model.size_bytes

    def verify(self, key: str, model: Published) -> None:
        """Compare the digests of the bytes in memory. Raises DigestMismatch."""
        for name, content in model.contents.items():
            if hashlib.sha256(_bytes(content)).hexdigest() != model.digests[name]:
                raise DigestMismatch(f"{key}: {name} is not what was published")
        self._spare.replace(max(map(len, model.contents.values())))

    def prepare(self, _key: str, model: Published) -> tuple[Published, int]:
        """Level "device": tensors in the compute precision, on the device."""
        prepared = Published(model.weights.prepare(self._device))
        return prepared, prepared.size_bytes

    def _published(self, key: str) -> Files:
        """The published files, of a registry on this machine."""
        revision = self._open(key)
        return Files(revision.record.recipe.method, revision.local_weights(), revision.digests)

    def _open(self, key: str) -> Revision:
        revision = self._registry.open(key)
        if not revision.record.fits(self._base_digest):
            raise BaseError(f"{key} was trained on another base")
        return revision


def _read(file: Path, spare: Spare) -> Tensor:
    with file.open("rb", buffering=0) as stream:
        size = file.stat().st_size
        content = spare.take(size)
        view = _bytes(content)
        position = 0
        while position < size and (count := stream.readinto(view[position:])):
            position += count
    if position < size:
        raise DigestMismatch(f"{file} shrank while it was read")
    return content


class Spare:
    """Memory that was touched before: the first touch is most of the time of a read."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def take(self, size: int) -> Tensor:
        """Memory of this size, the spare one if it fits."""
        memory, self._memory = self._memory, None
        if memory is None or not size <= len(memory) <= size * 1.1:
            return _room(size)
        return memory[:size]

    def replace(self, size: int) -> None:
        """Prepare memory for the next read."""
        if self._memory is None:
            self._memory = _room(size).fill_(1)


def _room(size: int) -> Tensor:
    """Memory from the system, to which it returns completely, unlike that of a heap."""
    memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=torch.uint8)[:size]


def _bytes(content: Tensor) -> memoryview:
    array: Any = content.numpy()  # its types do not know that it is a buffer
    return memoryview(array)


@dataclass(frozen=True)
class Budgets:
    """The most bytes of each tier."""

    disk_bytes: int
    ram_bytes: int
    device_bytes: int


def make_cache(
    source: Source, budgets: Budgets, background: Executor, watcher: Watcher, is_local: bool
) -> TieredCache:
    """Build a replica's cache. The files of a local registry are not copied."""
    disk = Level(Tier("disk", budgets.disk_bytes, watcher, dispose=Files.remove), source.fetch)
    ram = Level(Tier("ram", budgets.ram_bytes, watcher), source.read)
    device: Level[Published] = Level(
        Tier("device", budgets.device_bytes, watcher),
        source.prepare,
        size_of=lambda model: model.weights.prepared_bytes,
    )
    return TieredCache(
        [ram, device] if is_local else [disk, ram, device],
        source.verify,
        background,
        storage="disk" if is_local else "storage",
        lowest_usable=0 if is_local else 1,
        remembered=REMEMBERED,
        watcher=watcher,
    )


def load_refusal(exc: Exception, key: str) -> Refusal:
    """Translate a failed load. Details go to the log only: they contain paths."""
    if isinstance(exc, ModelNotFound):
        return NOT_FOUND
    _log.warning("model=%s cannot be loaded: %s: %s", key, type(exc).__name__, exc)
    if isinstance(exc, CacheFull):
        return OVERLOADED
    if isinstance(exc, DigestMismatch | BaseError | RegistryError):
        return UNUSABLE
    if isinstance(exc, DbrayError | OSError):
        return STORAGE_DOWN
    return BROKEN
