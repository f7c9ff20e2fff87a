"""A pretrained model: as the user names it (Base), and as loaded (Backbone).

Owns finding a base on disk or on the hub, its digest, and the protocol that every family of models
fulfils. What its folder has to hold is `layout`'s. Importing this package loads neither torch nor
diffusers. Only safetensors are read.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from dbray.bases import layout
from dbray.errors import BaseError
from dbray.spec.sections import MINIATURE, Prediction, anchor, is_commit, is_folder

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

    from dbray.spec.sections import Recipe, Sampler

MINIATURE_FOLDER = Path(__file__).resolve().parents[1] / "miniature" / "weights"
"""The base that comes with the package; as `diffusers` loads any."""

Weights: TypeAlias = "Mapping[str, Mapping[str, Tensor]]"
"""Tensors by part ('unet', 'text_encoder') and by name within the part."""


@dataclass(frozen=True)
class Base:
    """A base model on the local disk.

    `defaults` are the recipe, prior and previews that the base's makers recommend, read from a
    file `dbray.yaml` in its folder, where there is one. `revision` is the commit of a base from
    the hub, and None of any other.
    """

    name: str
    folder: Path
    digest: str
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    revision: str | None = None

    @property
    def resolution(self) -> int:
        """Side in pixels of the images that the base was trained on."""
        return layout.resolution(self.folder)

    def num_parameters(self, part: str) -> int:
        """Number of parameters of a part, read from the headers of its weight files."""
        return layout.num_parameters(self.folder, part)


class Backbone(Protocol):
    """A loaded base: it encodes, embeds, denoises and decodes, and holds the trained parts."""

    base: Base
    device: torch.device
    resolution: int
    latent_shape: tuple[int, int, int]
    alphas_cumprod: Tensor
    prediction: Prediction
    trained: nn.Module
    """The trained parts, in one module: forward(latents_BCHW, timesteps_B, text) -> prediction.
    Its children are the parts ('unet', 'text_encoder'); `text` comes from `condition`."""

    def encode(self, images_NHWC: np.ndarray) -> tuple[Tensor, Tensor]:
        """Encode uint8 images to the mean and standard deviation of their scaled latents."""
        ...

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Embed N prompts, shape (N, L, D)."""
        ...

    def condition(self, prompts: Sequence[str]) -> Tensor:
        """What `trained` takes as text: embeddings, or token ids when the text encoder trains."""
        ...

    def denoise(self, latents_BCHW: Tensor, timesteps_B: Tensor, embeddings_BLD: Tensor) -> Tensor:
        """Predict, without gradients, in the schedule's parameterisation; float32 on the CPU."""
        ...

    def decode(self, latents_NCHW: Tensor) -> np.ndarray:
        """Decode scaled latents to uint8 images (N, H, W, 3)."""
        ...

    def scheduler(self, name: Sampler) -> Any:
        """Make a fresh sampler of the base's noise schedule."""
        ...

    def set_weights(self, weights: Weights) -> None:
        """Copy weights into the resident parts, in place; parts not named get the base's back.

        So `set_weights({})` makes it the untouched base again.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write a diffusers folder of the base with the present weights.

        The replaced parts are in the recipe's `publish_precision`.
        """
        ...


def read_weights(files: Mapping[str, Path]) -> Weights:
    """Read weight files ('unet.safetensors', ...) into memory, by part and name.

    Raises:
        BaseError: when a file is not safetensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return {name.removesuffix(".safetensors"): load_file(path) for name, path in files.items()}
    except (SafetensorError, OSError) as exc:
        raise BaseError(f"weights cannot be read: {exc}") from exc


def resolve(name: str, revision: str | None = None) -> Base:
    """Find a base by name: 'miniature', a diffusers folder, or a hub id with a pinned revision.

    Raises:
        BaseError: when it is not there, is not complete, is of another family of models, or would
            need anything but safetensors.
    """
    try:
        folder, commit = _find_folder(name, revision)
        layout.check(folder)
        return Base(name, folder, _digest(folder), layout.read_defaults(folder), commit)
    except BaseError as exc:
        raise BaseError(f"base {name!r}: {exc}") from exc
    except OSError as exc:
        raise BaseError(f"base {name!r}: {exc}; check the path and the access rights") from exc


def here(base: Base) -> Base:
    """Find a base on this node that was resolved on another.

    Raises:
        BaseError: when it is not here and cannot be had, or is another one here.
    """
    node = platform.node()
    if base.revision is None:
        if is_folder(base.folder):
            return base
        raise BaseError(f"base {base.name!r}: {base.folder} does not exist on node {node}; every "
                        "node needs it at the same path")  # fmt: skip
    # Also where the folder is there: another process may be at work on its download, and only
    # the hub's client knows when it is whole.
    found = resolve(base.name, base.revision)
    if found.digest != base.digest:
        raise BaseError(f"base {base.name!r}: {found.folder} on node {node} is not what the job "
                        "began with; remove it there, and it is downloaded anew")  # fmt: skip
    return found


def load(base: Base, recipe: Recipe | None = None, device: str = "cpu") -> Backbone:
    """Load a base to a device. `recipe` says which parts are trained and in what precision.

    Raises:
        BaseError: when a part cannot be read.
    """
    from dbray.bases.stable_diffusion import LatentBackbone
    from dbray.spec.sections import Recipe

    return LatentBackbone(base, recipe or Recipe(), device)


def load_tokenizer(base: Base) -> Any:
    """Load the base's tokenizer alone (no torch weights). Raises BaseError."""
    from transformers import CLIPTokenizer

    folder = base.folder / "tokenizer"
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as exc:  # of a parser in Rust, which has no better class
        raise BaseError(f"base {base.name!r}: {folder} cannot be loaded: {exc}") from exc


def _find_folder(name: str, revision: str | None) -> tuple[Path, str | None]:
    """Find the folder of a base and, if it is from the hub, its commit."""
    if name == MINIATURE:
        return MINIATURE_FOLDER, None
    folder = Path(anchor(name, Path.cwd()))
    if is_folder(folder):
        return folder, None
    if Path(name).is_absolute() or name.count("/") != 1:
        raise BaseError("it does not exist; give 'miniature', a diffusers folder, or a hub id such "
                        "as 'owner/name'")  # fmt: skip
    if revision is None or not is_commit(revision):
        raise BaseError("there is no such folder. If it is a hub id, set base_revision to its "
                        "commit (40 hex digits), so that results repeat and nobody can exchange "
                        "the weights")  # fmt: skip
    return _download(name, revision), revision


def _download(name: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    patterns = [layout.INDEX_FILE, layout.DEFAULTS_FILE]
    patterns += [f"{part}/*{suffix}" for part in layout.PARTS for suffix in layout.SUFFIXES]
    try:
        folder = snapshot_download(
            name,
            revision=revision,
            allow_patterns=patterns,
            ignore_patterns=["*.fp16.*", "*non_ema*"],
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as exc:
        raise BaseError(f"{revision} of it cannot be had from the hub: {exc}; check the id, the "
                        "commit and the network") from exc  # fmt: skip
    return Path(folder)


def _digest(folder: Path) -> str:
    """Hex SHA-256 over the weights and configurations of every part, by sorted name."""
    total = hashlib.sha256()
    for part in layout.PARTS:
        for file in sorted((folder / part).glob("*")):
            if file.suffix in layout.SUFFIXES:
                with file.open("rb") as stream:
                    content = hashlib.file_digest(stream, "sha256").hexdigest()
                total.update(f"{part}/{file.name} {content}\n".encode())
    return total.hexdigest()
