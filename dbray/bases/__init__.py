"""A pretrained model: as named by the user (Base), and as loaded (Backbone).

Owns finding a base on disk or on the hub, and its digest. `base` owns what a base is, and `layout`
what its folder must contain. Importing this package loads neither torch nor
diffusers. Only safetensors are read.
"""

from __future__ import annotations

import hashlib
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

from dbray.bases.base import Backbone, Base, Compute
from dbray.bases.families.family import Family
from dbray.bases.layout import DEFAULTS_FILE, INDEX_FILE, SUFFIXES, Layout, read_defaults
from dbray.errors import BaseError
from dbray.spec.paths import MINIATURE, is_folder
from dbray.spec.super_resolution import Enlargement
from dbray.storage import hub

__all__ = [
    "FIRST",
    "MINIATURE_FOLDER",
    "SUPER_RESOLUTION",
    "Backbone",
    "Base",
    "Compute",
    "family_of_name",
    "find_on_this_node",
    "load",
    "load_tokenizer",
    "resolve",
    "with_stage",
]

FIRST, SUPER_RESOLUTION = "first", "super_resolution"
"""Folders of a cascade: the stage that draws, and the network that enlarges its images."""

MINIATURE_FOLDER = Path(__file__).resolve().parents[1] / "miniature" / "weights"
"""The base in the package; `diffusers` can load it like any other."""


def resolve(name: str, revision: str | None = None, needs_weights: bool = True) -> Base:
    """Find a base by name: 'miniature', a diffusers folder, or a hub id with a pinned revision.

    Where it needs no weights, a folder of configurations and tokenizers alone is a base too.

    Raises:
        BaseError: it does not exist, is not complete, is of an unsupported family, or has weights
            in another format than safetensors.
    """
    found = _resolve(name, revision, needs_weights)
    if found.family.is_super_resolution:
        raise BaseError(f"base {name!r}: a {found.family.name} draws no image from a text alone; "
                        "name it as super_resolution.base")  # fmt: skip
    folder = found.folder.parent / SUPER_RESOLUTION
    if found.folder.name == FIRST and is_folder(folder) and Path(name) != found.folder:
        found = replace(found, super_resolution=_second(str(folder), found, None, needs_weights))
    return found


def with_stage(
    base: Base, stage: Enlargement | None, needs_weights: bool = True, section: str = ""
) -> Base:
    """Return a base with the super-resolution networks that a job or a record names.

    `section` is put before the keys that a message names, such as "super_resolution.".

    Raises:
        BaseError: it cannot be used, or none is named and the base is not a cascade.
    """
    if stage is None:
        return base
    second = base.super_resolution
    if stage.base is not None:
        second = _second(stage.base, base, stage.base_revision, needs_weights, section)
    if second is None:
        raise BaseError(f"base {base.name!r} has no super-resolution network; name one as "
                        "super_resolution.base")  # fmt: skip
    following = with_stage(second, stage.then, needs_weights, f"{section}then.")
    return replace(base, super_resolution=following)


def _second(
    name: str, first: Base, revision: str | None, needs_weights: bool, section: str = ""
) -> Base:
    found = _resolve(name, revision, needs_weights, section)
    family: Any = found.family
    if not family.is_super_resolution:
        raise BaseError(f"base {name!r}: {family.name} is not a super-resolution network; name a "
                        "DeepFloyd IF II or a Stable Diffusion x4 upscaler")  # fmt: skip
    try:
        return replace(found, scale=family.scale(found.layout, first.resolution))
    except BaseError as exc:
        raise BaseError(f"base {name!r}: {exc}") from exc


def _resolve(
    name: str, revision: str | None, needs_weights: bool = True, section: str = ""
) -> Base:
    try:
        chosen, commit = _find_folder(name, revision, section=section)
        folder = _first_of(chosen)
        layout = Layout(folder)
        if not needs_weights and layout.is_empty:
            layout = Layout(folder, has_weights=False)
        layout.check()
        defaults = read_defaults(chosen) or read_defaults(folder)
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
    return Layout(_first_of(folder)).family


def _first_of(folder: Path) -> Path:
    """Return the folder of the stage that draws: a cascade has it in its own."""
    return folder / FIRST if is_folder(folder / FIRST) else folder


def find_on_this_node(base: Base) -> Base:
    """Find a base on this node that was resolved on another node.

    Raises:
        BaseError: it is not here and cannot be downloaded, or it is a different one here.
    """
    if base.super_resolution is not None:
        second = find_on_this_node(base.super_resolution)
        first = find_on_this_node(replace(base, super_resolution=None))
        return replace(first, super_resolution=second)
    node = platform.node()
    if base.revision is None:
        if is_folder(base.folder):
            return base
        raise BaseError(f"base {base.name!r}: {base.folder} does not exist on node {node}; every "
                        "node needs it at the same path")  # fmt: skip
    # Also if the folder exists: another process may still be downloading it, and only the hub's
    # client knows whether it is complete.
    found = _resolve(base.name, base.revision)
    if found.digest != base.digest:
        raise BaseError(f"base {base.name!r}: {found.folder} on node {node} is not what the job "
                        "began with; remove it there to download it again")  # fmt: skip
    return replace(found, scale=base.scale)


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


def _find_folder(
    name: str, revision: str | None, *, whole: bool = True, section: str = ""
) -> tuple[Path, str | None]:
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
        pin=f"set {section}base_revision to its commit",
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
