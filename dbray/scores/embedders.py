"""Embedders: models that turn images and texts into vectors for scores.

Owns finding one on disk or on the hub, its digest, and the supported kinds. Importing this
package loads neither torch nor transformers. Only safetensors are read.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from dbray.errors import BaseError
from dbray.storage import hub

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

MINIATURE_FOLDER = Path(__file__).resolve().parents[1] / "miniature" / "embedders"
MINIATURE = {"miniature-clip": "clip", "miniature-vit": "vit"}
"""Embedders of the drawn world in the package, by name."""

KINDS = {"clip": "CLIPModel", "vit": "ViTModel", "dinov2": "Dinov2Model"}
"""The class of transformers for each `model_type`: CLIP, DINO (a ViT) and DINOv2."""
_PACKAGE, _PERCEPTUAL = "stlpips_pytorch", "weights/vST0.0/alex_shift_tolerant.pth"
_CONFIG, _WEIGHTS, _PROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"


@dataclass(frozen=True)
class Embedder:
    """An embedder on the local disk."""

    name: str
    folder: Path
    digest: str
    """SHA-256 over its configuration, its weights and how images are prepared."""
    revision: str | None = None
    """Commit of one from the hub."""

    @cached_property
    def kind(self) -> str:
        """`model_type` of its configuration, one of KINDS."""
        return json.loads((self.folder / _CONFIG).read_text())["model_type"]

    @property
    def reads_text(self) -> bool:
        """Whether texts have embeddings in the same space as images."""
        return self.kind == "clip"


class LoadedEmbedder(Protocol):
    """An embedder in memory. Embeddings are float32 rows of length 1 on the CPU."""

    @property
    def scale(self) -> float:
        """What a CLIP multiplies cosines by before a softmax; 1 of other embedders."""
        ...

    def images(self, pixels: Sequence[np.ndarray]) -> Tensor:
        """Embed N uint8 images (H, W, 3) of any size: (N, E)."""
        ...

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Embed N texts: (N, E). Raises BaseError if the embedder reads no text."""
        ...


def resolve(name: str, revision: str | None = None) -> Embedder:
    """Find an embedder: a name of MINIATURE, a folder, or a hub id with its commit.

    Raises:
        BaseError: it does not exist, is not complete, or is of a kind that is not in KINDS.
    """
    try:
        return _resolve(name, revision)
    except (BaseError, OSError) as exc:
        raise BaseError(f"embedder {name!r}: {exc}") from exc


def find_on_this_node(embedder: Embedder) -> Embedder:
    """Find an embedder on this node that was resolved on another node.

    Raises:
        BaseError: it is not here and cannot be downloaded, or it is a different one here.
    """
    found = resolve(embedder.name, embedder.revision)
    if found.digest != embedder.digest:
        fix = "remove it there to download it again" if found.revision else "copy it to all nodes"
        raise BaseError(f"embedder {embedder.name!r}: {found.folder} on node {platform.node()} is "
                        f"not what the job began with; {fix}")  # fmt: skip
    return found


def load(embedder: Embedder, device: str = "cpu") -> LoadedEmbedder:
    """Load an embedder. Raises BaseError if a file cannot be read."""
    from dbray.scores.vision import VisionEmbedder

    return VisionEmbedder(embedder, device)


def find_perceptual_weights() -> Path:
    """Return the weights of the perceptual distance. Raises BaseError if not installed."""
    found = importlib.util.find_spec(_PACKAGE)
    for folder in (found and found.submodule_search_locations) or ():
        if (file := Path(folder) / _PERCEPTUAL).is_file():
            return file
    raise BaseError("scoring.perceptual needs the package stlpips-pytorch; install it with "
                    "pip install 'dbray[perceptual]', or set perceptual to false")  # fmt: skip


def _resolve(name: str, revision: str | None) -> Embedder:
    folder, commit = _find_folder(name, revision)
    for file in (_CONFIG, _WEIGHTS, _PROCESSOR):
        if not (folder / file).is_file():
            raise BaseError(f"{folder} has no {file}; give a folder that save_pretrained of "
                            "transformers wrote")  # fmt: skip
    found = Embedder(name, folder, _digest(folder), commit)
    if found.kind not in KINDS:
        known = ", ".join(KINDS)
        raise BaseError(f"unknown model_type {found.kind!r}; known are {known}")
    return found


def _find_folder(name: str, revision: str | None) -> tuple[Path, str | None]:
    if name in MINIATURE:
        return MINIATURE_FOLDER / MINIATURE[name], None
    patterns = ["*.json", "*.txt", _WEIGHTS]
    return hub.find_folder(
        name,
        revision,
        lambda commit: hub.download(name, commit, patterns),
        known=f"{', '.join(MINIATURE)}, a folder, or a hub id such as 'facebook/dinov2-base'",
        pin="give its commit",
    )


def _digest(folder: Path) -> str:
    total = hashlib.sha256()
    for name in (_CONFIG, _PROCESSOR, _WEIGHTS):
        total.update(f"{name} {hub.digest_once(folder / name)}\n".encode())
    return total.hexdigest()
