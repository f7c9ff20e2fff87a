"""A pretrained model: as the user names it (Base), and as loaded (Backbone).

Owns finding a base on disk or on the hub, its digest, and the protocol that every family of models
fulfils. Importing this package loads neither torch nor diffusers. Only safetensors are read.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import yaml

from dbray.errors import BaseError
from dbray.spec import is_commit

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

    from dbray.spec import Recipe, Sampler

Prediction: TypeAlias = Literal["epsilon", "v_prediction"]
"""What a denoiser answers: the noise, or v (Salimans and Ho 2022)."""

MINIATURE = "miniature"
DEFAULTS_FILE = "dbray.yaml"
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
Weights: TypeAlias = "Mapping[str, Mapping[str, Tensor]]"
"""Tensors by part ('unet', 'text_encoder') and by name within the part."""

_SUFFIXES = (".json", ".safetensors", ".txt")


@dataclass(frozen=True)
class Base:
    """A base model on the local disk.

    `defaults` are the recipe, prior and previews that the base's makers recommend, read from a
    file `dbray.yaml` in its folder, where there is one.
    """

    name: str
    folder: Path
    digest: str
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def resolution(self) -> int:
        """Side in pixels of the images that the base was trained on."""
        unet, vae = (_config(self.name, self.folder, part) for part in ("unet", "vae"))
        return unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)

    def num_parameters(self, part: str) -> int:
        """Number of parameters of a part, read from the headers of its weight files."""
        files = [file for file in sorted((self.folder / part).glob("*.safetensors"))
                 if not {"fp16", "non_ema"} & set(file.name.split("."))]  # fmt: skip
        return sum(_count_parameters(file) for file in files)


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
    folder = _find_folder(name, revision)
    if not (folder / "model_index.json").is_file():
        raise BaseError(f"base {name!r}: {folder} holds no model_index.json, so it is no diffusers "
                        "folder; give the folder that save_pretrained wrote")  # fmt: skip
    for part in ("unet", "vae", "text_encoder"):
        if not list((folder / part).glob("*.safetensors")):
            raise BaseError(f"base {name!r}: no *.safetensors in {folder / part}; dbray reads "
                            "no pickles: save the base anew with save_pretrained")  # fmt: skip
    _check_family(name, folder)
    return Base(name, folder, _digest(folder), _defaults(folder))


def _check_family(name: str, folder: Path) -> None:
    """Refuse pipelines that need more than noisy latents and one text. Raises BaseError."""
    unet, vae, text = (_config(name, folder, part) for part in ("unet", "vae", "text_encoder"))
    found = [unet.get("_class_name"), vae.get("_class_name"), text.get("model_type")]
    if found != ["UNet2DConditionModel", "AutoencoderKL", "clip_text_model"]:
        reason = f"its parts are {', '.join(map(str, found))}"
    elif unet.get("addition_embed_type") is not None:
        reason = f"its UNet asks for {unet['addition_embed_type']!r} beside the text"
    elif unet.get("in_channels") != vae.get("latent_channels"):
        reason = (f"its UNet takes {unet.get('in_channels')} channels, its latents have "
                  f"{vae.get('latent_channels')}")  # fmt: skip
    else:
        return
    raise BaseError(f"base {name!r} is no Stable Diffusion 1.x or 2.x text-to-image model: {reason}"
                    " (SDXL, inpainting and other families are not supported)")  # fmt: skip


def _config(name: str, folder: Path, part: str) -> dict[str, Any]:
    try:
        return json.loads((folder / part / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise BaseError(f"base {name!r}: {part} has no readable config.json: {exc}") from exc


def load(base: Base, recipe: Recipe | None = None, device: str = "cpu") -> Backbone:
    """Load a base to a device. `recipe` says which parts are trained and in what precision.

    Raises:
        BaseError: when a part cannot be read.
    """
    from dbray.backbones.latent import LatentBackbone
    from dbray.spec import Recipe

    return LatentBackbone(base, recipe or Recipe(), device)


def load_tokenizer(base: Base) -> Any:
    """Load the base's tokenizer alone (no torch weights)."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(base.folder / "tokenizer", local_files_only=True)


def _find_folder(name: str, revision: str | None) -> Path:
    if name == MINIATURE:
        from dbray.miniature import weights_path

        return weights_path()
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if folder.is_absolute() or name.count("/") != 1:
        raise BaseError(f"base {name!r} does not exist; give 'miniature', a diffusers folder, or a "
                        "hub id such as 'owner/name'")  # fmt: skip
    if revision is None or not is_commit(revision):
        raise BaseError(f"base {name!r}: set base_revision to a commit (40 hex digits), so that "
                        "results repeat and nobody can exchange the weights")  # fmt: skip
    return _download(name, revision)


def _download(name: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["model_index.json", DEFAULTS_FILE]
    patterns += [f"{part}/*{suffix}" for part in PARTS for suffix in _SUFFIXES]
    try:
        folder = snapshot_download(
            name,
            revision=revision,
            allow_patterns=patterns,
            ignore_patterns=["*.fp16.*", "*non_ema*"],
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as exc:
        raise BaseError(f"base {name!r} at {revision} cannot be had from the hub: {exc}") from exc
    return Path(folder)


def _count_parameters(file: Path) -> int:
    """Read the shapes in a safetensors header: 8 bytes of length, then JSON."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return sum(
        math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__"
    )


def _digest(folder: Path) -> str:
    """Hex SHA-256 over the weights and configurations of every part, by sorted name."""
    total = hashlib.sha256()
    for part in PARTS:
        for file in sorted((folder / part).glob("*")):
            if file.suffix in _SUFFIXES:
                with file.open("rb") as stream:
                    content = hashlib.file_digest(stream, "sha256").hexdigest()
                total.update(f"{part}/{file.name} {content}\n".encode())
    return total.hexdigest()


def _defaults(folder: Path) -> dict[str, dict[str, Any]]:
    file = folder / DEFAULTS_FILE
    if not file.is_file():
        return {}
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as exc:
        raise BaseError(f"{file} is not valid YAML: {exc}") from exc
