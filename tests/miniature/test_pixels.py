"""The cascade's training: its tokenizer, losses and batches, and what it exports."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dbray
from dbray.miniature import data, train
from dbray.miniature.autoencoder import to_images
from dbray.miniature.pixels import data as fine_data
from dbray.miniature.pixels import networks, sheet, tokens
from dbray.miniature.pixels import training as pixels
from dbray.miniature.pixels.drawing import Cascade, Drawing
from dbray.miniature.pixels.losses import Variances, spread_timesteps
from dbray.miniature.sheet import CELL, COLUMNS, STRIP
from dbray.miniature.training import Trainer
from dbray.miniature.vocabulary import caption_words, rare_strings

# --- the tokenizer --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokens.write_tokenizer(folder, networks.TEXT_LENGTH)
    return tokens.load_tokenizer(folder)


def test_words_and_rare_strings_are_one_token_each(tokenizer):
    for word in (*caption_words(), *rare_strings(), "sneaker", "teapot"):
        assert len(tokenizer.tokenize(word)) == 1, word
    assert tokenizer("a sks dog").input_ids[-1] == tokenizer.eos_token_id == 1
    assert tokenizer.pad_token_id == 0


def test_rare_strings_have_ids_from_5000_to_10000_and_captions_the_lowest(tokenizer):
    ids = tokenizer.convert_tokens_to_ids
    rare = [ids(tokens.SPACE + string) for string in rare_strings()]
    known = [ids(tokens.SPACE + word) for word in ("a", "dog", "beach", "red")]
    assert min(rare) >= 5_000
    assert max(rare) < len(tokenizer) <= 10_000
    assert max(known) < 200
    assert ids(tokens.SPACE + "a") < ids(tokens.SPACE + "dog")


def test_unknown_words_are_spelt_and_no_piece_is_twice(tokenizer):
    assert tokenizer.unk_token_id not in tokenizer("flumoxing quz, 3.5!").input_ids
    names = [name for name, _ in tokens.pieces()]
    assert len(set(names)) == len(names)


# --- losses ---------------------------------------------------------------------------------------


def test_the_bound_is_the_divergence_of_two_normal_distributions():
    scheduler = networks.build_scheduler()
    variances = Variances.of(scheduler, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    clean, noise, error, logits = (torch.randn(4, 3, 2, 2, generator=generator) for _ in range(4))
    logits = logits.clamp(-1, 1)
    timesteps = torch.tensor([5, 100, 700, 998])
    expected = []
    for row, t in enumerate(timesteps.tolist()):
        left = scheduler.alphas_cumprod.double()
        before, now, beta = left[t - 1], left[t], scheduler.betas.double()[t]
        noisy = now.sqrt() * clean[row] + (1 - now).sqrt() * noise[row]

        def mean(eps, noisy=noisy, now=now, beta=beta):
            return (noisy - beta / (1 - now).sqrt() * eps) / (1 - beta).sqrt()

        true = beta * (1 - before) / (1 - now)
        log_variance = scheduler._get_variance(t, logits[row], variance_type="learned_range")
        found = torch.distributions.Normal(mean(noise[row] + error[row]),
                                           (0.5 * log_variance.double()).exp())  # fmt: skip
        truth = torch.distributions.Normal(mean(noise[row]), true.sqrt())
        expected.append(torch.distributions.kl_divergence(truth, found).mean())
    bound = variances.bound(logits, error, timesteps)
    assert torch.allclose(bound.double(), torch.stack(expected), rtol=2e-3, atol=1e-5)


def test_the_bound_trains_the_variance_alone():
    variances = Variances.of(networks.build_scheduler(), torch.device("cpu"))
    logits, error = (torch.ones(2, 3, 2, 2, requires_grad=True) for _ in range(2))
    variances.bound(logits, error, torch.tensor([0, 500])).sum().backward()
    assert error.grad is None
    assert logits.grad is not None
    assert not logits.grad[0].any()  # the first timestep has no variance
    assert logits.grad[1].all()


def test_timesteps_are_spread():
    drawn = spread_timesteps(np.random.default_rng(0), 20, 1_000)
    assert sorted(drawn // 50) == list(range(20))
    assert list(drawn) != sorted(drawn)


def test_half_of_the_noise_levels_are_low():
    levels = pixels.draw_levels(np.random.default_rng(0), 4_000)
    assert levels.min() == 0
    assert levels.max() < pixels.HIGH_LEVEL
    expected = 0.5 + 0.5 * pixels.LOW_LEVEL / pixels.HIGH_LEVEL
    assert (levels < pixels.LOW_LEVEL).mean() == pytest.approx(expected, abs=0.03)


# --- batches --------------------------------------------------------------------------------------


def test_texts_belong_to_their_scenes():
    table = np.arange(61, dtype=np.uint16)[:, None].repeat(3, axis=1)
    texts = pixels.Texts(table, np.arange(1, 61), 100)
    scenes, ids = texts.draw(np.random.default_rng(0), 5_000)
    empty = ids[:, 0].numpy() == 0
    assert np.array_equal((ids[:, 0].numpy()[~empty] - 1) // data.NUM_CAPTIONS, scenes[~empty])
    assert empty.mean() == pytest.approx(pixels.CAPTION_DROPOUT, abs=0.02)


def test_small_pictures_are_means_of_four_pixels():
    drawn = np.zeros((1, 64, 64, 3), dtype=np.uint8)
    drawn[0, 0, 0] = 255
    large = to_images(drawn, torch.device("cpu"))
    small = fine_data.small_images(large)
    assert small.shape == (1, 3, 32, 32)
    assert small[0, :, 0, 0].tolist() == pytest.approx([-0.5] * 3)
    assert float(small.min()) == -1.0


# --- a run, and what it exports -------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run of every stage, the first one in two parts."""
    folder = tmp_path_factory.mktemp("cascade")
    common = ["--folder", str(folder), "--weights", str(folder / "weights"), "--processes", "1",
              "--batch-size", "2"]  # fmt: skip
    threads = torch.get_num_threads()
    limits = {"first": 2, "super-resolution": 2}  # steps, not seconds: machines differ
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fine_data, "SHARD_SIZE", 12)
        patch.setattr(
            Trainer, "going", lambda trainer: trainer.progress.step < limits[trainer.stage]
        )
        (folder / "cascade" / "first").mkdir(parents=True)
        (folder / "cascade" / "first" / "dbray.yaml").write_text("recipe: {steps: 3}\n")
        train.main(["cascade-render", "--num-shards", "1", *common])
        train.main(["first", *common])
        before = torch.load(folder / "first.pt")["progress"]["step"]
        limits["first"] = 4
        train.main(["first", "super-resolution", *common])
        train.main(["cascade-export", *common])
    torch.set_num_threads(threads)
    return folder, before


def test_training_continues_from_its_checkpoint(run):
    folder, before = run
    state = torch.load(folder / "first.pt")
    assert (before, state["progress"]["step"]) == (2, 4)
    assert {"parameters", "average", "optimiser"} <= set(state)


def test_the_export_is_in_the_layout_of_deepfloyd_if(run):
    cascade = run[0] / "cascade"
    for stage, channels, name in (
        ("first", 3, "IFPipeline"),
        ("super_resolution", 6, "IFSuperResolutionPipeline"),
    ):
        folder = cascade / stage
        unet = json.loads((folder / "unet" / "config.json").read_text())
        schedule = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        assert json.loads((folder / "model_index.json").read_text())["_class_name"] == name
        assert (unet["in_channels"], unet["out_channels"]) == (channels, 6)
        assert unet["addition_embed_type"] == "text"
        assert unet["encoder_hid_dim"] == networks.TEXT_WIDTH
        assert schedule["variance_type"] == "learned_range"
        assert schedule["beta_schedule"] == "squaredcos_cap_v2"
    assert unet["class_embed_type"] == "timestep"
    texts = [(cascade / s / "text_encoder" / "model.safetensors").read_bytes()
             for s in ("first", "super_resolution")]  # fmt: skip
    assert texts[0] == texts[1]
    assert (cascade / "first" / "dbray.yaml").read_text() == "recipe: {steps: 3}\n"
    size = sum(path.stat().st_size for path in cascade.rglob("*") if path.is_file())
    assert size <= 26_000_000  # at most 25 MB of the package, which is compressed
    assert not list(run[0].glob("cascade.*"))


def test_the_pipelines_draw_with_the_export(run):
    cascade = Cascade(run[0] / "cascade")
    assert cascade.first.text_encoder.dtype == cascade.first.unet.dtype == torch.float32
    how = Drawing(steps=(2, 2))
    small, large = cascade.draw(["a dog", "a cat"], [0, 1], how)
    assert small.shape == (2, 32, 32, 3)
    assert large.shape == (2, 64, 64, 3)
    again = cascade.draw(["a dog", "a cat"], [0, 1], how)[1]
    assert np.array_equal(large, again)
    assert large.std() > 1.0


def test_the_sheet_shows_both_stages(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sheet, "PROMPTS", ("a dog",))
    path = tmp_path / "sheet.png"
    assert sheet.main([str(path), "--weights", str(run[0] / "cascade")]) == 0
    num_cells = 2 * (2 * len(sheet.SUBJECTS) + 1)
    assert Image.open(path).height == -(-num_cells // COLUMNS) * (CELL + STRIP)


def test_texts_are_encoded_as_the_pipeline_encodes_them(run):
    cascade = Cascade(run[0] / "cascade")
    expected, blank = cascade.first.encode_prompt(["A red DOG"])
    ids = cascade.first.tokenizer(["a red dog", ""], padding="max_length", max_length=77,
                                  return_tensors="pt").input_ids  # fmt: skip
    with torch.no_grad():
        states = pixels.encode(cascade.first.text_encoder, ids)
    assert torch.allclose(states, torch.cat([expected, blank]), atol=1e-5)


def test_the_second_stage_sees_in_training_what_its_pipeline_shows_it(run):
    pipe = Cascade(run[0] / "cascade").second
    pipe.set_progress_bar_config(disable=True)
    seen = {}

    def keep(module, inputs, named):
        seen.update(condition=inputs[0][:, 3:], levels=named["class_labels"])

    pipe.unet.register_forward_pre_hook(keep, with_kwargs=True)
    small = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    text = torch.zeros(1, 77, networks.TEXT_WIDTH)
    pipe(image=small, prompt_embeds=text, num_inference_steps=1, guidance_scale=1.0,
         noise_level=30, generator=torch.Generator().manual_seed(2), output_type="pt")  # fmt: skip
    generator = torch.Generator().manual_seed(2)
    torch.randn(1, 3, 64, 64, generator=generator)  # the pipeline's x_T comes first
    noise = torch.randn(1, 3, 64, 64, generator=generator)
    scheduler = networks.build_image_noising_scheduler()
    expected = scheduler.add_noise(pixels.enlarge(small), noise, torch.tensor([30]))
    assert torch.equal(seen["condition"], expected)
    assert seen["levels"].tolist() == [30]


def test_a_missing_first_stage_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="run the stage `first`"):
        pixels.load_first(tmp_path, 10)


def test_the_package_is_small(tmp_path):
    files = [path for path in Path(dbray.__file__).parent.rglob("*") if path.is_file()]
    wheel = tmp_path / "dbray.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as package:
        for path in files:
            if "__pycache__" not in path.parts:
                package.write(path)
    assert wheel.stat().st_size <= 50_000_000
