"""A published model's weights on their way from the registry to the device.

Owns the levels of a replica's cache: files on the local disk (only if the registry is remote),
their bytes in RAM as they were published, and tensors on the device in the compute precision. A key
may name several models, which are kept as one: see `messages.shares_of`. How files are read and put
into the resident models is the method's (`dbray.method.methods`).
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dbray.bases import Backbone
from dbray.bases.resident import Layout, Weights
from dbray.errors import BaseError, DbrayError, DigestMismatch, ModelNotFound, RegistryError
from dbray.method import stages
from dbray.method.combining import combined
from dbray.records.models import ModelRecord, Registry, Revision
from dbray.serving.messages import (
    BROKEN,
    NOT_FOUND,
    OVERLOADED,
    STORAGE_DOWN,
    UNUSABLE,
    Refusal,
    shares_of,
)
from dbray.serving.options import GIB, ServeOptions
from dbray.serving.replica.cache import CacheFull, TieredCache
from dbray.serving.replica.tiers import Level, Tier, Watcher

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

    Until they are verified, `contents` are the bytes of their files, each with its SHA-256.
    """

    weights: Weights
    contents: list[tuple[str, Tensor]] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        """Memory in use, once the weights are verified."""
        return self.weights.size_bytes


@dataclass(frozen=True)
class ModelFiles:
    """The weight files of one model on this machine, and their SHA-256."""

    record: ModelRecord
    paths: Mapping[str, Path]
    digests: Mapping[str, str]


@dataclass(frozen=True)
class Files:
    """The weight files of a key's models, each with its weight; copies are in `folder`."""

    models: Sequence[tuple[ModelFiles, float]]
    folder: Path | None = None

    @property
    def size_bytes(self) -> int:
        """Room on the disk."""
        return sum(file.stat().st_size for one, _ in self.models for file in one.paths.values())

    def remove(self) -> None:
        """Remove the copies."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


class Source:
    """Reads a registry's models and checks that they are for this base."""

    def __init__(self, registry: Registry, backbone: Backbone, scratch: Path) -> None:
        self._registry = registry
        self._digests = backbone.base.digests
        self._device = backbone.device
        self._layouts = layouts = backbone.resident.layouts
        self._scratch = scratch
        self._spare = Spare()
        denoiser = backbone.base.family.denoiser
        self._spare.replace(int(published_bytes({denoiser: layouts[denoiser]}) * 1.02))

    def fetch(self, key: str, _below: None) -> tuple[Files, int]:
        """Level "disk": copies of the files, verified."""
        folder = self._scratch / hashlib.sha256(key.encode()).hexdigest()  # keys of sums are long
        try:
            models = [
                (_files_of(revision, revision.fetch_weights(folder / str(index))), weight)
                for index, (revision, weight) in enumerate(self._open(key))
            ]
        except DbrayError:
            shutil.rmtree(folder, ignore_errors=True)  # no tier counts a part of a copy
            raise
        files = Files(models, folder)
        return files, files.size_bytes

    def read(self, key: str, files: Files | None) -> tuple[Published, int]:
        """Level "ram": the files' bytes; they fit the base, but are not yet verified."""
        files = files or self._published(key)
        read: list[tuple[Weights, float]] = []
        contents: list[tuple[str, Tensor]] = []
        for model, weight in files.models:
            own = {name: _read(file, self._spare) for name, file in model.paths.items()}
            read.append((stages.read(model.record, own, self._layouts), weight))
            contents += [(model.digests[name], content) for name, content in own.items()]
        published = Published(combined(read), contents)
        return published, published.size_bytes

    def verify(self, key: str, model: Published) -> None:
        """Compare the digests of the bytes in memory, and drop them. Raises DigestMismatch."""
        for digest, content in model.contents:
            if hashlib.sha256(_bytes(content)).hexdigest() != digest:
                raise DigestMismatch(f"{key}: its files are not what was published")
        self._spare.replace(max(len(content) for _, content in model.contents))
        model.contents.clear()  # the weights are views of them, or copies

    def prepare(self, _key: str, model: Published) -> tuple[Published, int]:
        """Level "device": tensors in the compute precision, on the device."""
        prepared = Published(model.weights.prepare(self._device))
        return prepared, prepared.size_bytes

    def _published(self, key: str) -> Files:
        """The published files, of a registry on this machine."""
        opened = self._open(key)
        return Files([(_files_of(one, one.local_weights()), weight) for one, weight in opened])

    def _open(self, key: str) -> list[tuple[Revision, float]]:
        """Find the models of a key, with their weights."""
        found = []
        for share in shares_of(key):
            revision = self._registry.open(share.name)
            if not revision.record.fits(*self._digests):
                raise BaseError(f"{revision.record.name} was trained on another base")
            found.append((revision, share.weight))
        return found


def _files_of(revision: Revision, paths: Mapping[str, Path]) -> ModelFiles:
    return ModelFiles(revision.record, paths, revision.digests)


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

    @classmethod
    def of(cls, options: ServeOptions) -> Budgets:
        """The budgets of a configuration."""
        sizes = (options.disk_gib, options.ram_gib, options.device_gib)
        return cls(*(int(size * GIB) for size in sizes))


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
