"""Embedding files, loaded by diffusers."""

from __future__ import annotations

import pytest
import torch
from kit.bases import build_tiny_base
from safetensors.torch import load_file, save_file

from dbray.errors import RegistryError
from dbray.export.embeddings import from_embedding, to_embedding


def test_diffusers_loads_the_vectors_of_one_encoder(tmp_path) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(build_tiny_base(tmp_path / "base"))
    vectors = torch.arange(2 * 16.0).view(2, 16)
    save_file(to_embedding({"text_encoder": vectors}), tmp_path / "rex.safetensors")
    pipe.load_textual_inversion(tmp_path / "rex.safetensors", token="<rex>")
    ids = pipe.tokenizer.convert_tokens_to_ids(["<rex>", "<rex>_1"])
    assert torch.equal(pipe.text_encoder.get_input_embeddings().weight[ids], vectors)


def test_two_encoders_have_one_key_each(tmp_path) -> None:
    vectors = {"text_encoder": torch.ones(3, 8), "text_encoder_2": torch.zeros(3, 12)}
    save_file(to_embedding(vectors), tmp_path / "rex.safetensors")
    written = load_file(tmp_path / "rex.safetensors")
    assert {key: tuple(t.shape) for key, t in written.items()} == {
        "clip_l": (3, 8),
        "clip_g": (3, 12),
    }
    read = from_embedding(written)
    assert read.keys() == vectors.keys()
    assert all(torch.equal(read[part], vectors[part]) for part in vectors)


def test_one_vector_may_have_one_dimension() -> None:
    assert from_embedding({"emb_params": torch.ones(8)})["text_encoder"].shape == (1, 8)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "not an embedding file"),
        ({"weight": torch.ones(1, 4)}, "but 'weight'"),
        ({"clip_l": torch.ones(1, 4), "clip_g": torch.ones(2, 4)}, "different numbers of vectors"),
    ],
)
def test_a_file_that_is_not_an_embedding_is_rejected(tensors: dict, message: str) -> None:
    with pytest.raises(RegistryError, match=message):
        from_embedding(tensors)


def test_parts_without_a_key_are_rejected() -> None:
    with pytest.raises(RegistryError, match="no key for 'text_encoder_3'"):
        to_embedding({"text_encoder_3": torch.ones(1, 4)})
