"""Embedders: models that turn images and texts into vectors for scores.

Owns finding one on disk or on the hub, its digest, and the supported kinds. Importing this
package loads neither torch nor transformers. Only safetensors are read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from dbray.errors import BaseError
from dbray.spec.canon import is_commit
from dbray.spec.paths import anchor, is_folder

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

MINIATURE_FOLDER = Path(__file__).resolve().parents[1] / "miniature" / "embedders"
MINIATURE = {"miniature-clip": "clip", "miniature-vit": "vit"}
"""Embedders of the drawn world in the package, by name."""

KINDS = {"clip": "CLIPModel", "vit": "ViTModel", "dinov2": "Dinov2Model"}
"""The class of transformers for each `model_type`: CLIP, DINO (a ViT) and DINOv2."""
_CONFIG, _WEIGHTS, _PROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"


@dataclass(frozen=True)
class Embedder:
    """An embedder on the local disk."""

    name: str
    folder: Path
    digest: str
    """SHA-256 over its configuration, its weights and how images are prepared."""

    @property
    def kind(self) -> str:
        """`model_type` of its configuration, one of KINDS."""
        return json.loads((self.folder / _CONFIG).read_text())["model_type"]

    @property
    def reads_text(self) -> bool:
        """Whether texts have embeddings in the same space as images."""
        return self.kind == "clip"


class LoadedEmbedder(Protocol):
    """An embedder in memory. Embeddings are float32 rows of length 1 on the CPU."""

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
    folder = _find_folder(name, revision)
    for file in (_CONFIG, _WEIGHTS, _PROCESSOR):
        if not (folder / file).is_file():
            raise BaseError(f"embedder {name!r}: {folder} has no {file}; give a folder that "
                            "save_pretrained of transformers wrote")  # fmt: skip
    found = Embedder(name, folder, _digest(folder))
    if found.kind not in KINDS:
        raise BaseError(f"embedder {name!r}: unknown model_type {found.kind!r}; known are "
                        f"{', '.join(KINDS)}")  # fmt: skip
    return found


def load(embedder: Embedder, device: str = "cpu") -> LoadedEmbedder:
    """Load an embedder. Raises BaseError if a file cannot be read."""
    from dbray.scores.vision import VisionEmbedder

    return VisionEmbedder(embedder, device)


def _find_folder(name: str, revision: str | None) -> Path:
    if name in MINIATURE:
        return MINIATURE_FOLDER / MINIATURE[name]
    folder = Path(anchor(name, Path.cwd()))
    if is_folder(folder):
        return folder
    if Path(name).is_absolute() or name.count("/") != 1:
        known = ", ".join(MINIATURE)
        raise BaseError(f"embedder {name!r} does not exist; give {known}, a folder, or a hub id "
                        "such as 'facebook/dinov2-base'")  # fmt: skip
    if revision is None or not is_commit(revision):
        raise BaseError(f"embedder {name!r}: there is no such folder. If it is a hub id, give its "
                        "commit (40 hex digits) too")  # fmt: skip
    return _download(name, revision)


def _download(name: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision,
                                      allow_patterns=["*.json", "*.txt", _WEIGHTS]))  # fmt: skip
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as exc:
        raise BaseError(f"embedder {name!r}: {revision} cannot be downloaded from the hub: {exc}; "
                        "check the id, the commit and the network") from exc  # fmt: skip


def _digest(folder: Path) -> str:
    total = hashlib.sha256()
    for name in (_CONFIG, _PROCESSOR, _WEIGHTS):
        with (folder / name).open("rb") as stream:
            total.update(f"{name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()
