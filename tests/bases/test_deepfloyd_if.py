"""DeepFloyd IF's first stage compared with diffusers' pipeline: text, images, loss, variance."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import sentencepiece
import torch
from kit.families import FAMILIES
from kit.training import Trained, check_published, recipe_of
from safetensors.torch import load

from dbray import bases
from dbray.bases.generate import Sampling, generate
from dbray.errors import BaseError
from dbray.spec.recipe import Recipe
from dbray.spec.sections import Previews
from dbray.training.batches import Share, draw_batches

IF = FAMILIES["deepfloyd_if"]
PROMPT = " A photo of zb dog"
"""Letters and spaces that the pipeline changes."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return IF.build(tmp_path_factory.mktemp("if") / "base")


@pytest.fixture(scope="module")
def base(folder):
    return bases.resolve(str(folder))


@pytest.fixture(scope="module")
def backbone(base):
    return bases.load(base)


@pytest.fixture(scope="module")
def pipeline(folder):
    return IF.load(folder)


def change(folder, part, **values):
    file = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("prompt", [PROMPT, "", "a photo of the dog in the snow " * 10])
def test_the_text_is_that_of_the_pipeline(backbone, pipeline, prompt):
    wanted, _ = pipeline.encode_prompt(prompt, clean_caption=False)
    assert torch.equal(backbone.condition([prompt]).tensors["text"], wanted)


@pytest.mark.parametrize("negative", ["", "a cat"])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("sampler", ["ddpm", "dpm++", "dpm++_sde"])
def test_images_are_those_of_the_pipeline(backbone, pipeline, sampler, guidance, negative):
    sampling = Sampling(sampler, 2, guidance, negative)
    [image] = generate(backbone, [PROMPT], [0], sampling, size=(32, 48))
    pipeline.scheduler = backbone.scheduler(sampler, 2)
    wanted = 255 * IF.draw(pipeline, PROMPT, guidance_scale=guidance, width=32, height=48,
                           negative_prompt=negative or None)  # fmt: skip
    assert np.abs(image - wanted).max() <= 1


def test_the_pixels_are_the_latents(base, backbone):
    pixels = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3), dtype=np.uint8)
    mean, deviation = backbone.encode(pixels)
    assert mean.shape[1:] == base.latent_shape(32) == (3, 32, 32)
    assert not deviation.any()
    assert np.array_equal(backbone.decode(mean), pixels)


def test_the_loss_of_a_step_is_that_of_the_noise_alone(base, pipeline):
    recipe = recipe_of("full", steps=1)
    trained = Trained(base, recipe)
    [batch] = draw_batches(trained.data, recipe, trained.backbone.schedule, 0, Share())
    times, text = batch.timesteps_B, batch.condition.tensors["text"]
    with torch.no_grad():
        output = pipeline.unet(batch.noisy_BCHW, times, text).sample
    assert output.shape[1] == 6
    expected = (output[:, :3] - batch.target_BCHW).square().mean(dim=(1, 2, 3)).sum()
    assert trained.curve[0].loss == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(
    "method",
    ["full", {"kind": "lora", "rank": 4}, {"kind": "pivotal", "rank": 4}, "textual_inversion"],
    ids=["full", "lora", "pivotal", "textual inversion"],
)
def test_a_published_model_predicts_as_it_was_trained(base, method):
    check_published(base, Trained(base, recipe_of(method)))


def test_an_identifier_is_learnt_in_t5(base, backbone):
    found = Trained(base, recipe_of("textual_inversion"))
    changed = {name for name, value in found.network.named_parameters()
               if not torch.equal(value, found.begun[name])}  # fmt: skip
    assert changed == {"text_encoder.shared.rows"}
    text, before = (one.condition(["a dog"]).tensors["text"] for one in (found.backbone, backbone))
    assert torch.equal(text, before)


def test_full_fine_tuning_leaves_the_rows_of_the_variance_bitwise_as_they_are(base, backbone):
    recipe = recipe_of("full", weight_decay=0.5)
    published = load(Trained(base, recipe).files["unet.safetensors"])
    for kind in ("weight", "bias"):
        before = backbone.models["unet"].state_dict()[f"conv_out.{kind}"]
        after = published[f"conv_out.{kind}"]
        assert torch.equal(after[3:], before[3:])
        assert not torch.equal(after[:3], before[:3])


@pytest.mark.parametrize(("part", "values", "reason"), [
    ("unet", {"in_channels": 6, "class_embed_type": "timestep"}, "class_embed_type is 'timestep'"),
    ("unet", {"encoder_hid_dim": 64}, "encoder_hid_dim of its UNet is 64, not 24"),
    ("unet", {"sample_size": None}, "sample_size of its UNet is None"),
    ("text_encoder", {"model_type": "umt5"}, "umt5"),
    ("scheduler", {"variance_type": "fixed_small"}, "6 output channels; use the scheduler"),
    ("scheduler", {"prediction_type": "sample"}, "it predicts 'sample'"),
])  # fmt: skip
def test_other_pixel_models_are_refused(tmp_path, part, values, reason):
    folder = IF.build(tmp_path / "base")
    change(folder, part, **values)
    with pytest.raises(BaseError, match=reason):
        bases.resolve(str(folder))


def test_a_vocabulary_may_be_a_sentencepiece_model_alone(tmp_path):
    folder = IF.build(tmp_path / "base")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a photo of a dog", "a zb dog in the snow", "a cat"] * 20),
        model_writer=model, vocab_size=60, hard_vocab_limit=False, minloglevel=2,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
    )  # fmt: skip
    (folder / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(BaseError, match="nor spiece"):
        bases.resolve(str(folder))
    (folder / "tokenizer" / "spiece.model").write_bytes(model.getvalue())
    tokenizer = bases.load_tokenizer(bases.resolve(str(folder)))
    plain = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    for prompt in (" a zb  dog", "a photo of a Cat"):
        assert tokenizer.encode(prompt, add_special_tokens=False) == plain.encode(prompt)


def test_its_defaults_are_those_of_the_pipeline(base):
    assert base.fill(Previews()).sampler == "ddpm"
    assert base.fill(Previews()).guidance == 7.0
    reasons = [what for what, _ in base.family.unfit(base.layout, Recipe(train_text_encoder=True))]
    assert reasons == ["train_text_encoder: the text encoders of DeepFloyd IF I cannot be trained"]
