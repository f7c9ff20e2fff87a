"""Learned token vectors as the embedding file that A1111, ComfyUI and diffusers load.

'emb_params' for a base with one text encoder, 'clip_l' and 'clip_g' for one with two, each of shape
(vectors, width).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from dbray.errors import RegistryError

_KEYS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
_ONE = "emb_params"


def to_embedding(vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Make the tensors of a file from the vectors of each text encoder.

    Raises:
        RegistryError: a text encoder has no key in the format.
    """
    if unknown := set(vectors) - set(_KEYS):
        raise RegistryError(f"embedding files have no key for {min(unknown)!r}")
    if set(vectors) == {"text_encoder"}:
        return {_ONE: vectors["text_encoder"]}
    return {_KEYS[part]: tensor for part, tensor in vectors.items()}


def from_embedding(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read the vectors of each text encoder from a file.

    Raises:
        RegistryError: a key is not an embedding's, or the text encoders' vectors differ in number.
    """
    parts = {key: part for part, key in _KEYS.items()} | {_ONE: "text_encoder"}
    unknown = set(tensors) - set(parts)
    if unknown or not tensors:
        named = f" but {min(unknown)!r}" if unknown else ""
        keys = "'emb_params', 'clip_l' or 'clip_g'"
        raise RegistryError(f"not an embedding file: it does not hold {keys}{named}")
    vectors = {parts[key]: tensor.reshape(-1, tensor.shape[-1]) for key, tensor in tensors.items()}
    if len({len(tensor) for tensor in vectors.values()}) != 1:
        raise RegistryError("the text encoders have different numbers of vectors in the file")
    return vectors
