"""The latents of class images: in a lane's memory, with the PriorSet, or encoded now.

Owns which sets a lane has in memory, and what decides the bits of latents. All is encoded with base
weights.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load, save

from dbray.bases import Backbone
from dbray.lanes.beat import Beat
from dbray.planning.plan import WEIGHTS_VERSION
from dbray.records.prior_latents import keep_latents, latents_folder, read_latents
from dbray.records.prior_sets import load_images
from dbray.storage.store import Store
from dbray.subjects import images
from dbray.training.data import Latents

NUM_WARM_PRIORS = 16
"""Prior sets whose latents a lane keeps: those of 200 images, 64 x 64 x 4 each, take 26 MB."""
_ENCODED_AT_ONCE = 16


def class_images(store: Store, prior_digest: str, side: int) -> np.ndarray:
    """Read the class images of a set, as squares of this side in pixels."""
    pixels = load_images(store, prior_digest)
    if pixels.shape[1:3] == (side, side):
        return pixels
    return np.concatenate([images.views(Image.fromarray(one), side, "centre") for one in pixels])


class PriorLatents:
    """Latents of prior sets, on one rank of a lane."""

    def __init__(self, store: Store, backbone: Backbone) -> None:
        self._store, self._backbone = store, backbone
        self._warm: OrderedDict[str, Latents] = OrderedDict()

    def of(self, prior_digest: str, beat: Beat) -> Latents:
        """Return the latents of a set.

        Raises:
            StoreError: a class image cannot be read.
        """
        if prior_digest not in self._warm:
            self._warm[prior_digest] = self._read_or_encode(prior_digest, beat)
        self._warm.move_to_end(prior_digest)
        if len(self._warm) > NUM_WARM_PRIORS:
            self._warm.popitem(last=False)
        return self._warm[prior_digest]

    def _read_or_encode(self, prior_digest: str, beat: Beat) -> Latents:
        with beat.meanwhile():
            folder = latents_folder(self._store, prior_digest, self._encoding())
            kept = read_latents(self._store, folder)
        if kept is not None:
            tensors = load(kept)
        else:
            tensors = self._encode(prior_digest, beat)
            with beat.meanwhile():
                keep_latents(self._store, folder, save(tensors))
        return Latents(tensors["mean"], tensors["std"])

    def _encoding(self) -> dict[str, str | int]:
        """All that decides the bits of latents, except for the base and the images."""
        kind = self._backbone.device.type
        return {
            "version": WEIGHTS_VERSION,
            "resolution": self._backbone.resolution,
            "device": kind,
            "threads": torch.get_num_threads() if kind == "cpu" else 0,
        }

    def _encode(self, prior_digest: str, beat: Beat) -> dict[str, torch.Tensor]:
        with beat.meanwhile():
            pixels = class_images(self._store, prior_digest, self._backbone.resolution)
        means, deviations = [], []
        for start in range(0, len(pixels), _ENCODED_AT_ONCE):
            mean, deviation = self._backbone.encode(pixels[start : start + _ENCODED_AT_ONCE])
            means.append(mean)
            deviations.append(deviation)
            beat.touch()
        both = {"mean": torch.cat(means), "std": torch.cat(deviations)}
        return {name: latents.contiguous() for name, latents in both.items()}
