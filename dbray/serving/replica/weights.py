"""A published model's weights on their way from the registry to the device.

Owns the levels of a replica's cache: files on the local disk (only where the registry is remote),
their bytes in RAM as they were published, and tensors on the device in the compute precision; and
the module's own tensors, which are overwritten in place. In all of them the tensors of a part lie
one after the other, sorted by name, as in a safetensors file: so a swap is one copy.

Knows full fine-tunes only. An adapter method plugs in at `Resident.put`: its tensors would be
written into slots that were injected once, when the base was loaded.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import shutil
from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from dbray.bases import Backbone
from dbray.errors import BaseError, DbrayError, DigestMismatch, ModelNotFound, RegistryError
from dbray.records.models import ModelRecord, Registry
from dbray.serving.messages import BROKEN, NOT_FOUND, OVERLOADED, STORAGE_DOWN, UNUSABLE, Refusal
from dbray.serving.replica.cache import CacheFull, TieredCache
from dbray.serving.replica.tiers import Level, Tier, Watcher

_log = logging.getLogger(__name__)

REMEMBERED = (RegistryError, DigestMismatch, BaseError)
"""Errors that say a model is unknown or corrupt; others may pass by themselves."""

_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
_MAX_HEADER_BYTES = 100 * 2**20

Layout = Mapping[str, torch.Size]
"""Names and shapes of a part's tensors, sorted by name."""


def published_bytes(layouts: Mapping[str, Layout]) -> int:
    """Memory that a model with all parts takes as it is published by default: in float16."""
    return sum(2 * _num_values(layout) for layout in layouts.values())


def _num_values(layout: Layout) -> int:
    return sum(shape.numel() for shape in layout.values())


@dataclass(frozen=True)
class Flat:
    """Weights by part, each one flat tensor in the order of the part's Layout.

    `contents` are the bytes of the files that they are views of, where they are, and `digests` what
    the SHA-256 of each must be.
    """

    parts: Mapping[str, Tensor]
    method: str = "full"
    contents: Mapping[str, Tensor] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Memory that it holds."""
        return sum(tensor.nbytes for tensor in (self.contents or self.parts).values())

    @property
    def prepared_bytes(self) -> int:
        """Memory that it would hold on the device."""
        return sum(tensor.numel() * 4 for tensor in self.parts.values())

    def prepare(self, device: torch.device) -> Flat:
        """Copy to the device as float32, the type of the resident modules."""
        parts = {
            part: tensor.to(device, torch.float32, copy=True) for part, tensor in self.parts.items()
        }
        return Flat(parts, self.method)


class Resident:
    """The tensors of the modules that sample, brought together in one buffer per part.

    Does what `Backbone.set_weights` does, in one copy: what fits was checked at loading.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.layouts: dict[str, Layout] = {}
        self._flat: dict[str, Tensor] = {}
        self._base: dict[str, Tensor] = {}
        self._helper = ThreadPoolExecutor(1, "copier")
        for part, module in backbone.trained.named_children():
            self.layouts[part], self._flat[part] = _gather(module)

    @torch.no_grad()
    def put(self, weights: Flat | None) -> None:
        """Copy a model's weights in; None, and parts not named, get the base's back."""
        if weights is not None and weights.method != "full":
            raise BaseError(f"method {weights.method!r} cannot be served")
        parts = weights.parts if weights else {}
        # Base copies are taken when a part is first replaced.
        for part in parts.keys() - self._base.keys():
            self._base[part] = self._flat[part].to("cpu", copy=True)
        for part, base in self._base.items():
            self._overwrite(self._flat[part], parts.get(part, base))

    def _overwrite(self, target: Tensor, source: Tensor) -> None:
        """Copy one half here and one beside: a single core cannot use all of the memory's speed."""
        half = len(target) // 2
        beside = self._helper.submit(target[half:].copy_, source[half:])
        try:
            target[:half].copy_(source[:half])
        finally:
            beside.result()


@torch.no_grad()
def _gather(module: nn.Module) -> tuple[Layout, Tensor]:
    """Move a module's tensors into one buffer, of which they are views from then on."""
    owners = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    own = {name: owners[name] for name in sorted(module.state_dict())}
    flat = torch.cat([tensor.detach().float().flatten() for tensor in own.values()])
    pieces = flat.split([tensor.numel() for tensor in own.values()])
    for tensor, piece in zip(own.values(), pieces, strict=True):
        tensor.data = piece.view(tensor.shape)
    return {name: tensor.shape for name, tensor in own.items()}, flat


@dataclass(frozen=True)
class Files:
    """A model's weight files on this machine. `folder` holds them, where they are copies."""

    method: str
    paths: Mapping[str, Path]
    digests: Mapping[str, str]
    folder: Path | None = None

    def remove(self) -> None:
        """Remove the copies."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


class Source:
    """Reads a registry's models and checks that they are for this base."""

    def __init__(
        self, registry: Registry, backbone: Backbone, layouts: Mapping[str, Layout], scratch: Path
    ) -> None:
        self._registry = registry
        self._base_digest = backbone.base.digest
        self._device = backbone.device
        self._layouts = layouts
        self._scratch = scratch
        self._spare = Spare()
        self._spare.replace(int(published_bytes({"unet": layouts["unet"]}) * 1.02))

    def fetch(self, key: str, _below: None) -> tuple[Files, int]:
        """Level "disk": copies of the files, verified."""
        record = self._record(key)
        folder = self._scratch / key.replace("@", "/")
        try:
            paths = self._registry.weights(record, folder)
            digests = self._registry.digests(record)
        except DbrayError:
            shutil.rmtree(folder, ignore_errors=True)  # no tier counts a part of a copy
            raise
        files = Files(record.recipe.method, paths, digests, folder)
        return files, sum(file.stat().st_size for file in paths.values())

    def read(self, key: str, files: Files | None) -> tuple[Flat, int]:
        """Level "ram": the files' bytes; fit, but not yet verified."""
        files = files or self._published(key)
        contents, parts = {}, {}
        for name, file in files.paths.items():
            part = name.removesuffix(".safetensors")
            if part not in self._layouts:
                raise BaseError(f"{key}: the base has no part {part!r} to replace")
            contents[name] = content = _read(file, self._spare)
            parts[part] = flatten(content, self._layouts[part], name)
        weights = Flat(parts, files.method, contents, files.digests)
        return weights, weights.size_bytes

    def verify(self, key: str, weights: Flat) -> None:
        """Compare the digests of the very bytes that are used. Raises DigestMismatch."""
        for name, content in weights.contents.items():
            if hashlib.sha256(_bytes(content)).hexdigest() != weights.digests[name]:
                raise DigestMismatch(f"{key}: {name} is not what was published")
        self._spare.replace(max(map(len, weights.contents.values())))

    def prepare(self, _key: str, weights: Flat) -> tuple[Flat, int]:
        """Level "device": tensors in the compute precision, on the device."""
        prepared = weights.prepare(self._device)
        return prepared, prepared.size_bytes

    def _published(self, key: str) -> Files:
        """The published files themselves, of a registry on this machine."""
        record = self._record(key)
        paths, digests = self._registry.local_weights(record), self._registry.digests(record)
        return Files(record.recipe.method, paths, digests)

    def _record(self, key: str) -> ModelRecord:
        record = self._registry.find(key)
        if record.base_digest != self._base_digest:
            raise BaseError(f"{key} was trained on another base")
        return record


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
    """One piece of memory that was touched already: first touch is most of the time of a read."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def take(self, size: int) -> Tensor:
        """Memory of this size, the spare one if it fits."""
        memory, self._memory = self._memory, None
        if memory is None or not size <= len(memory) <= size * 1.1:
            return _room(size)
        return memory[:size]

    def replace(self, size: int) -> None:
        """Make a new one, for when the next read is in a hurry."""
        if self._memory is None:
            self._memory = _room(size).fill_(1)


def _room(size: int) -> Tensor:
    """Memory straight from the system, to which it returns; a heap would keep the holes."""
    memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=torch.uint8)[:size]


def _bytes(content: Tensor) -> memoryview:
    array: Any = content.numpy()  # its types do not know that it is a buffer
    return memoryview(array)


def flatten(content: Tensor, layout: Layout, name: str) -> Tensor:
    """The tensors of a safetensors file as one flat tensor in the order of a layout.

    A view of the bytes where they lie in that order already, as `safetensors` writes them.

    Raises:
        BaseError: when it is no such file, or its tensors do not fit the layout.
    """
    flat = _in_order(content, layout)
    if flat is not None:
        return flat
    try:
        tensors = load(content.numpy().tobytes())
    except (SafetensorError, ValueError, KeyError) as exc:
        raise BaseError(f"{name} cannot be read: {exc}") from exc
    if {key: value.shape for key, value in tensors.items()} != dict(layout):
        raise BaseError(f"{name} does not fit the base")
    dtypes = {tensor.dtype for tensor in tensors.values()}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    return torch.cat([tensors[key].to(dtype).flatten() for key in layout])


def _in_order(content: Tensor, layout: Layout) -> Tensor | None:
    """The data of a safetensors file, if it is exactly the layout's tensors, of one known type."""
    head = content[:8].numpy().tobytes()
    start = 8 + int.from_bytes(head, "little")
    if len(head) < 8 or start > min(len(content), _MAX_HEADER_BYTES) or start % 8:
        return None
    try:
        header: dict[str, Any] = json.loads(content[8:start].numpy().tobytes())
        header.pop("__metadata__", None)
        entries = sorted(header.items(), key=lambda entry: entry[1]["data_offsets"])
        found = [(name, entry["shape"], entry["dtype"]) for name, entry in entries]
        ends = [entry["data_offsets"][1] for _, entry in entries]
        begins = [entry["data_offsets"][0] for _, entry in entries]
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
        return None
    dtype = _DTYPES.get(found[0][2]) if found else None
    wanted = [(name, list(shape), found[0][2]) for name, shape in layout.items()] if found else []
    if dtype is None or found != wanted or begins != [0, *ends[:-1]]:
        return None
    if ends[-1] != len(content) - start or ends[-1] != _num_values(layout) * dtype.itemsize:
        return None
    return content[start:].view(dtype)


@dataclass(frozen=True)
class Budgets:
    """Bytes that each tier may hold."""

    disk_bytes: int
    ram_bytes: int
    device_bytes: int


def make_cache(
    source: Source, budgets: Budgets, background: Executor, watcher: Watcher, is_local: bool
) -> TieredCache:
    """Build a replica's cache. A local registry is its own disk tier: nothing is copied."""
    disk = Level(Tier("disk", budgets.disk_bytes, watcher, dispose=Files.remove), source.fetch)
    ram = Level(Tier("ram", budgets.ram_bytes, watcher), source.read)
    device: Level[Flat] = Level(
        Tier("device", budgets.device_bytes, watcher),
        source.prepare,
        size_of=lambda weights: weights.prepared_bytes,
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
    """Translate a failed load. The log gets the details, the caller none: they name paths."""
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
