"""Embedders are found by name, folder and kind, and compute the same as transformers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from kit.embedders import BUILDERS
from safetensors.torch import load_file, save_file

from dbray.errors import BaseError
from dbray.scores import embedders


@pytest.fixture(scope="module", params=BUILDERS)
def folder(request, tmp_path_factory):
    return BUILDERS[request.param](tmp_path_factory.mktemp("embedders") / request.param)


def pictures(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (40, 56, 3), dtype=np.uint8) for _ in range(count)]


def test_embeddings_have_length_1_and_are_independent_of_the_batch(folder):
    loaded = embedders.load(embedders.resolve(str(folder)))
    together = loaded.images(pictures(40))
    assert together.norm(dim=1).numpy() == pytest.approx(1.0)
    assert torch.allclose(together[33:34], loaded.images(pictures(40)[33:34]), atol=1e-6)


def test_embeddings_equal_those_of_transformers(folder):
    found = embedders.resolve(str(folder))
    model = getattr(transformers, embedders.KINDS[found.kind]).from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    values = processor(images=pictures(3), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        if found.reads_text:
            expected = model.get_image_features(pixel_values=values).pooler_output
        else:
            expected = model(pixel_values=values).last_hidden_state[:, 0]
    expected = expected / expected.norm(dim=1, keepdim=True)
    assert torch.allclose(embedders.load(found).images(pictures(3)), expected, atol=1e-6)


def test_only_a_clip_embeds_texts(folder):
    found = embedders.resolve(str(folder))
    loaded = embedders.load(found)
    if found.reads_text:
        rows = loaded.texts(["a photo of a dog", "a cat"])
        assert rows.shape == (2, loaded.images(pictures(1)).shape[1])
        assert not torch.allclose(rows[0], rows[1])
    else:
        with pytest.raises(BaseError, match="reads no text"):
            loaded.texts(["a dog"])


def test_a_missing_tensor_is_an_error(folder, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    tensors = load_file(copy / "model.safetensors")
    del tensors[next(name for name in tensors if "layer" in name)]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BaseError, match="has no tensor"):
        embedders.load(embedders.resolve(str(copy)))


def test_the_digest_follows_the_weights(folder, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    before = embedders.resolve(str(copy)).digest
    assert before == embedders.resolve(str(folder)).digest
    tensors = {name: value + 1 for name, value in load_file(copy / "model.safetensors").items()}
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert embedders.resolve(str(copy)).digest != before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no-such-thing", "does not exist; give miniature-clip"),
        ("facebook/dinov2-base", "give its commit"),
    ],
)
def test_a_missing_embedder_is_an_error_with_a_fix(name, message):
    with pytest.raises(BaseError, match=message):
        embedders.resolve(name)


def test_an_unknown_kind_is_an_error(tmp_path):
    folder = BUILDERS["vit"](tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "resnet"}))
    with pytest.raises(BaseError, match="unknown model_type 'resnet'"):
        embedders.resolve(str(folder))
