"""The tiny bases of other tests: diffusers loads them, and mistakes become visible with them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from kit.families import FAMILIES
from kit.families.family import SIDE
from kit.families.text import RARE_TOKENS, WORDS
from safetensors.torch import load_file

VARIANTS = [(name, deep) for name in FAMILIES for deep in (False, True)]


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Build a base once, and load diffusers' pipeline from it."""
    built = {}

    def build_once(name, deep=True):
        if (name, deep) not in built:
            folder = FAMILIES[name].build(tmp_path_factory.mktemp(name) / "base", deep)
            built[name, deep] = folder, FAMILIES[name].load(folder)
        return built[name, deep]

    return build_once


@pytest.mark.parametrize(("name", "deep"), VARIANTS)
def test_the_pipeline_loads_and_its_image_depends_only_on_the_prompt(build, name, deep):
    folder, pipeline = build(name, deep)
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == (
        type(pipeline).__name__
    )
    image = FAMILIES[name].draw(pipeline, "a photo of zb dog")
    assert image.shape == (SIDE, SIDE, 3)
    assert image.std() > 0.05
    assert np.array_equal(image, FAMILIES[name].draw(pipeline, "a photo of zb dog"))
    other = FAMILIES[name].draw(pipeline, "a photo of zc dog")
    assert np.abs(image - other).max() > 1 / 255


@pytest.mark.parametrize("name", FAMILIES)
def test_images_may_have_unequal_sides(build, name):
    _, pipeline = build(name)
    image = FAMILIES[name].draw(pipeline, "a dog", width=32, height=48)
    assert image.shape == (48, 32, 3)


@pytest.mark.parametrize(("name", "deep"), VARIANTS)
def test_a_tiny_base_is_small_and_always_the_same(build, tmp_path, name, deep):
    folder, _ = build(name, deep)
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 3e6
    state = torch.random.get_rng_state()
    again = FAMILIES[name].build(tmp_path / "again", deep)
    assert torch.equal(torch.random.get_rng_state(), state)
    for file in folder.rglob("*.safetensors"):
        tensors = load_file(again / file.relative_to(folder))
        assert all(torch.equal(tensors[key], value) for key, value in load_file(file).items())


@pytest.mark.parametrize("name", FAMILIES)
def test_words_and_rare_tokens_are_one_token_each(build, name):
    _, pipeline = build(name)
    tokenizers = [part for key, part in pipeline.components.items() if "tokenizer" in key]
    assert tokenizers
    for tokenizer in tokenizers:
        for word in [*RARE_TOKENS, *WORDS]:
            ids = tokenizer.encode(f"a {word} dog", add_special_tokens=False)
            assert len(ids) == 3, word
            assert tokenizer.decode(ids[1]).strip() == word
        assert len(set(tokenizer.encode("swimming"))) > 3  # spelled in letters, not unknown


@pytest.mark.parametrize("name", [name for name in FAMILIES if FAMILIES[name].has_autoencoder])
def test_deep_latents_are_smaller_than_the_image(build, name):
    _, pipeline = build(name)
    assert pipeline.vae_scale_factor == 4
    _, flat = build(name, deep=False)
    assert flat.vae_scale_factor == 1


def test_the_template_of_qwen_image_has_34_tokens_before_the_prompt(build):
    _, pipeline = build("qwen_image")
    before = pipeline.prompt_template_encode.split("{}")[0]
    assert len(pipeline.tokenizer.encode(before)) == pipeline.prompt_template_encode_start_idx


def test_the_thinking_switch_of_qwen3_changes_the_text(build):
    tokenizer = build("flux2_klein")[1].tokenizer
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": "a dog"}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=thinking,
        )
        for thinking in (True, False)
    ]
    assert texts[0] == "<|im_start|>user\na dog<|im_end|>\n<|im_start|>assistant\n"
    assert texts[1] == texts[0] + "<think>\n\n</think>\n\n"


def embed(pipeline, **options):
    return pipeline.encode_prompt("a photo of zb dog", device="cpu", **options)[0]


def test_flux2_klein_has_the_layers_after_the_correct_ones(build):
    _, pipeline = build("flux2_klein")
    wrong = embed(pipeline, text_encoder_out_layers=(10, 20, 30))
    assert not torch.allclose(embed(pipeline), wrong, atol=0.1)


def test_flux2_klein_scales_latents_by_statistics_that_are_not_1(build):
    _, pipeline = build("flux2_klein")
    assert pipeline.vae.bn.running_var.sub(1).abs().max() > 0.2
    assert pipeline.vae.bn.running_mean.abs().max() > 0.2


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_the_second_clip_tokenizer_pads_with_another_token(build, name):
    _, pipeline = build(name)
    ids = [
        tokenizer("a dog", padding="max_length").input_ids
        for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2)
    ]
    assert ids[0][:4] == ids[1][:4]
    assert ids[0][-1] != ids[1][-1]


def test_sdxl_uses_zeros_for_no_negative_prompt(build):
    _, pipeline = build("sdxl")
    _, negative, pooled, negative_pooled = pipeline.encode_prompt("a photo of zb dog", device="cpu")
    assert negative.abs().max() == 0
    assert negative_pooled.abs().max() == 0
    assert pooled.abs().max() > 0


def test_flux_depends_on_the_guidance_scale(build):
    _, pipeline = build("flux")
    images = [FAMILIES["flux"].draw(pipeline, "a dog", guidance_scale=scale) for scale in (1, 3.5)]
    assert not np.array_equal(*images)
