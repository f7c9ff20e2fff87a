"""Latents of class images, kept with their PriorSet in `priors/<digest>/latents/<key>/`.

Encoding a set takes long, and every lane on every node needs the result. The name of a set fixes
the base and so the autoencoder; the key fixes the images and how they are encoded. So kept latents
are never out of date. Missing or damaged ones are made again. Does not know how images are encoded.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from dbray.errors import DigestMismatch, FileMissing, StoreError
from dbray.records.prior_sets import DESCRIPTION, folder_of
from dbray.spec.canon import digest_json
from dbray.storage.committed import Committed
from dbray.storage.store import Store

_FILE = "latents.safetensors"

logger = logging.getLogger(__name__)


def latents_folder(store: Store, prior_digest: str, encoding: Mapping[str, str | int]) -> str:
    """Return the folder of a set's latents.

    Args:
        store: where the set is.
        prior_digest: of the set.
        encoding: all that decides the bits of latents, except for the base and the images.

    Raises:
        StoreError: the set is not published.
    """
    folder = folder_of(prior_digest)
    files = Committed(store, folder).files
    images = {name: files[name].sha256 for name in files if name != DESCRIPTION}
    return f"{folder}/latents/{digest_json({'images': images, 'encoding': dict(encoding)})}"


def read_latents(store: Store, folder: str) -> bytes | None:
    """Read the file of kept latents; None if there is none, or a damaged one, which is removed.

    Raises:
        StoreError: storage failed.
    """
    try:
        return Committed(store, folder).read(_FILE)
    except FileMissing:
        return None
    except DigestMismatch as exc:
        logger.warning("latents are made again: %s", exc)
        store.remove(folder)
        return None


def keep_latents(store: Store, folder: str, data: bytes) -> None:
    """Keep latents as the bytes of a safetensors file. If that fails, the next lane encodes too."""
    try:
        store.commit(folder, {_FILE: data})
    except StoreError as exc:
        logger.warning("latents are not kept: %s", exc)
