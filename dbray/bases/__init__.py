"""A pretrained model: as named by the user (Base), and as loaded (Backbone).

Owns finding a base on disk or on the hub, its digest, and the protocol of all families of models.
`layout` owns what its folder must contain. Importing this package loads neither torch nor
diffusers. Only safetensors are read.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dbray.bases import defaults
from dbray.bases.defaults import Section
from dbray.bases.families.family import Family
from dbray.bases.layout import DEFAULTS_FILE, INDEX_FILE, SUFFIXES, Layout, read_defaults
from dbray.errors import BaseError
from dbray.spec.paths import MINIATURE, is_folder
from dbray.spec.recipe import Precision
from dbray.storage import hub

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

    from dbray.bases.condition import Condition
    from dbray.bases.resident import Resident
    from dbray.bases.schedule import Schedule
    from dbray.spec.sections import Sampler

MINIATURE_FOLDER = Path(__file__).resolve().parents[1] / "miniature" / "weights"
"""The base in the package; `diffusers` can load it like any other."""


@dataclass(frozen=True)
class Base:
    """A base model on the local disk.

    `defaults` are what the base's makers recommend: sections of a job, and recipes by `methods`,
    read from a file `dbray.yaml` in its folder, where there is one. `revision` is the commit of a
    base from the hub, and None of any other.
    """

    name: str
    folder: Path
    digest: str
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    revision: str | None = None
    serves: Base | None = None
    """Another base that samples with what is trained on this one, such as one distilled from it."""

    has_weights: bool = True
    """False for configurations alone, of which only a plan can be made."""

    class_nouns: tuple[str, ...] = ()
    """All class nouns that it knows, where its makers list them in `dbray.yaml`."""

    @property
    def distilled(self) -> str | None:
        """How its files show that it is distilled to few steps; None if they do not."""
        return self.family.distilled(self.layout)

    @property
    def serving(self) -> Base:
        """The base that samples with what is trained on this one."""
        return self.serves or self

    @cached_property
    def layout(self) -> Layout:
        """Its folder."""
        return Layout(self.folder, self.has_weights)

    @property
    def family(self) -> Family:
        """The family of the base."""
        return self.layout.family

    @property
    def resolution(self) -> int:
        """Side in pixels of the images that the base was trained on."""
        return self.family.resolution(self.layout)

    def fill(self, section: Section) -> Section:
        """Fill what a section of a job leaves open, as `defaults.fill` does."""
        return defaults.fill(self, section).section

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        """Shape (C, H, W) of the latents of a square image, from the configuration alone."""
        return self.family.latent_shape(self.layout.autoencoder, (resolution, resolution))

    def num_parameters(self, part: str) -> int:
        """Number of parameters of a part."""
        return self.layout.num_parameters(part)


@dataclass(frozen=True)
class Compute:
    """How a base is loaded. `resolution` is in pixels; None: the base's own.

    `half`: denoiser and text encoders whose files are in bfloat16 stay so. None: on GPUs, where
    bf16 is computed in. `visits`: models are in CPU memory, and on the device only
    while they encode; the denoiser is brought there by the engine that trains it.
    """

    device: str = "cpu"
    precision: Precision = "fp32"
    resolution: int | None = None
    gradient_checkpointing: bool = False
    half: bool | None = None
    visits: bool = False


class Backbone(Protocol):
    """A loaded base: it encodes, conditions, denoises and decodes, and has the trained parts."""

    base: Base
    device: torch.device
    resolution: int
    schedule: Schedule
    tokenizers: Mapping[str, Any]
    """Every tokenizer of the base, by the name of its folder."""

    @property
    def models(self) -> Mapping[str, nn.Module]:
        """Every model of the base, by the name of its folder."""
        ...

    @property
    def is_exact(self) -> bool:
        """Whether it computes in float32 throughout, where rounding is invisible in images."""
        ...

    @property
    def resident(self) -> Resident:
        """The only object that replaces weights and restores the base's."""
        ...

    def network(self, parts: Sequence[str]) -> nn.Module:
        """Make the module for a training step: the denoiser, and text encoders.

        forward(latents_BCHW, timesteps_B, condition: tensors by name) -> prediction. Its children
        are `parts`; if text encoders are among them, it takes the conditions of `tokenize`.
        """
        ...

    def latent_shape(self, size: tuple[int, int] | None = None) -> tuple[int, int, int]:
        """Return the shape (C, H, W) of the latents of an image of (width, height) pixels."""
        ...

    def encode(self, images_NHWC: np.ndarray) -> tuple[Tensor, Tensor]:
        """Encode uint8 images to the mean and standard deviation of their scaled latents."""
        ...

    def condition(self, prompts: Sequence[str]) -> Condition:
        """Encode N prompts with the present text encoders; N rows on the device."""
        ...

    def tokenize(self, prompts: Sequence[str]) -> Condition:
        """Return token ids of N prompts: the condition of a network with text encoders."""
        ...

    def denoise(self, latents_BCHW: Tensor, timesteps_B: Tensor, condition: Condition) -> Tensor:
        """Predict, without gradients, in the schedule's parameterisation; float32 on the CPU."""
        ...

    def decode(self, latents_NCHW: Tensor) -> np.ndarray:
        """Decode scaled latents to uint8 images (N, H, W, 3)."""
        ...

    def scheduler(self, name: Sampler, steps: int, size: tuple[int, int] | None = None) -> Any:
        """Make a fresh sampler of the base, prepared for this number of steps and image size.

        Raises:
            BaseError: the base has no such sampler.
        """
        ...


def resolve(name: str, revision: str | None = None, needs_weights: bool = True) -> Base:
    """Find a base by name: 'miniature', a diffusers folder, or a hub id with a pinned revision.

    Where it needs no weights, a folder of configurations and tokenizers alone is a base too.

    Raises:
        BaseError: it does not exist, is not complete, is of an unsupported family, or has weights
            in another format than safetensors.
    """
    try:
        folder, commit = _find_folder(name, revision)
        layout = Layout(folder)
        if not needs_weights and layout.is_empty:
            layout = Layout(folder, has_weights=False)
        layout.check()
        defaults = read_defaults(folder)
        nouns = defaults.pop("class_nouns", ())
        return Base(name, folder, _digest(layout), defaults, commit,
                    has_weights=layout.has_weights, class_nouns=nouns)  # fmt: skip
    except BaseError as exc:
        raise BaseError(f"base {name!r}: {exc}") from exc
    except OSError as exc:
        raise BaseError(f"base {name!r}: {exc}; check the path and the access rights") from exc


def family_of_name(name: str, revision: str | None = None) -> Family:
    """Return the family of a base, from its index alone. Raises BaseError."""
    folder, _ = _find_folder(name, revision, whole=False)
    return Layout(folder).family


def find_on_this_node(base: Base) -> Base:
    """Find a base on this node that was resolved on another node.

    Raises:
        BaseError: it is not here and cannot be downloaded, or it is a different one here.
    """
    node = platform.node()
    if base.revision is None:
        if is_folder(base.folder):
            return base
        raise BaseError(f"base {base.name!r}: {base.folder} does not exist on node {node}; every "
                        "node needs it at the same path")  # fmt: skip
    # Also if the folder exists: another process may still be downloading it, and only the hub's
    # client knows whether it is complete.
    found = resolve(base.name, base.revision)
    if found.digest != base.digest:
        raise BaseError(f"base {base.name!r}: {found.folder} on node {node} is not what the job "
                        "began with; remove it there to download it again")  # fmt: skip
    return found


def load(base: Base, compute: Compute | None = None) -> Backbone:
    """Load a base.

    Raises:
        BaseError: a part cannot be read.
    """
    from dbray.bases.backbone import LoadedBackbone

    return LoadedBackbone(base, compute or Compute())


def load_tokenizer(base: Base, name: str | None = None) -> Any:
    """Load one tokenizer of a base (default: its first) without weights. Raises BaseError."""
    import transformers

    name = name or next(iter(base.family.tokenizers))
    folder = base.folder / name
    try:
        tokenizer_class = getattr(transformers, base.family.tokenizers[name])
        return tokenizer_class.from_pretrained(folder, local_files_only=True)
    except Exception as exc:  # the Rust parser raises no narrower class
        raise BaseError(f"base {base.name!r}: {folder} cannot be loaded: {exc}") from exc


def _find_folder(name: str, revision: str | None, *, whole: bool = True) -> tuple[Path, str | None]:
    """Find the folder of a base and, if it is from the hub, its commit.

    Of a base from the hub that is not here yet, only the index comes unless it is wanted `whole`.
    """
    if name == MINIATURE:
        return MINIATURE_FOLDER, None
    return hub.find_folder(
        name,
        revision,
        lambda commit: _download(name, commit, whole),
        known="'miniature', a diffusers folder, or a hub id such as 'owner/name'",
        pin="set base_revision to its commit",
    )


def _download(name: str, revision: str, whole: bool) -> Path:
    top = [INDEX_FILE, DEFAULTS_FILE]
    folder = hub.download(name, revision, top)
    if not whole:
        return folder
    family = Layout(folder).family
    parts = [f"{part}/*{suffix}" for part in family.folders for suffix in SUFFIXES]
    return hub.download(name, revision, [*top, *parts], ["*.fp16.*", "*non_ema*"])


def _digest(layout: Layout) -> str:
    """Return the hex SHA-256 of the weights and configurations of every part, by sorted name."""
    total = hashlib.sha256()
    for file in layout.files():
        total.update(f"{file.parent.name}/{file.name} {hub.digest_once(file)}\n".encode())
    for key in layout.family.index_keys:
        total.update(f"{INDEX_FILE} {key} {layout.index.get(key)!r}\n".encode())
    return total.hexdigest()
