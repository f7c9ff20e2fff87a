"""Learned token vectors as the embedding file that A1111, ComfyUI and diffusers load.

'emb_params' for a base with one text encoder, 'clip_l' and 'clip_g' for one with two, each of shape
(vectors, width).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from dbray.errors import RegistryError
from dbray.export.source import Source
from dbray.method import tokens

SUFFIX = ".safetensors"

_KEYS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
_ONE = "emb_params"


def why_not(source: Source) -> str | None:
    """See Format."""
    if not source.has_tokens:
        return "it has no learnt embeddings"
    unknown = set(source.base.family.text_encoders) - set(_KEYS)
    return f"embedding files have no key for {min(unknown)!r}" if unknown else why_no_key(source)


def why_no_key(source: Source) -> str | None:
    """Say why learnt embeddings have no place in such a file; None if they have."""
    family = source.base.family
    others = [part for part in family.encoders_to_teach if "CLIP" not in family.models[part]]
    return f"embedding files hold those of CLIP alone, not of {others[0]!r}" if others else None


def export(source: Source, output: Path) -> str:
    """See Format."""
    output.parent.mkdir(parents=True, exist_ok=True)
    save_file(to_embedding(vectors_of(source)), output)
    return f"{source.load_base()}; {load_line(source, output)}"


def load_line(source: Source, file: Path) -> str:
    """Python that loads a file into `pipe`."""
    return f"pipe.load_textual_inversion({str(file)!r}, token={source.token!r})"


def vectors_of(source: Source) -> dict[str, Tensor]:
    """The learnt vectors of the identifier's tokens, in its order, for each text encoder."""
    assert source.record is not None
    learnt = tokens.read_file(source.files[tokens.FILE])
    sequences = tokens.sequences(source.base, source.record.identifier)
    return {
        part: rows[[ids.index(token_id) for token_id in sequences[part]]]
        for part, (ids, rows) in learnt.items()
    }


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
