"""The miniature: the world is as described, the weights load, training can be stopped anywhere."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dbray.bases import MINIATURE_FOLDER
from dbray.miniature import world
from dbray.miniature.captions import PLACE_PHRASES, caption
from dbray.miniature.vocabulary import (
    byte_symbols,
    caption_words,
    grow_merges,
    rare_strings,
    write_tokenizer,
)
from dbray.scores import embedders


def difference(a: Image.Image, b: Image.Image) -> float:
    return float(np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).mean())


# --- the world ------------------------------------------------------------------------------------


def test_importing_the_world_imports_no_heavy_library():
    code = (
        "import sys, dbray.miniature.world, dbray.miniature;"
        "heavy = {'torch', 'diffusers', 'transformers', 'ray'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_world_has_the_promised_classes_and_places():
    assert len(world.CLASS_NOUNS) >= 12
    assert 2 * len(world.LIVING) >= len(world.CLASS_NOUNS)
    assert len(world.PLACE_NAMES) >= 10
    assert set(PLACE_PHRASES) == set(world.PLACE_NAMES)


def test_render_is_deterministic_and_sized():
    scene = world.random_scene(np.random.default_rng(5))
    first, second = world.render(scene), world.render(scene)
    assert first.size == (64, 64)
    assert first.mode == "RGB"
    assert difference(first, second) == 0.0


@pytest.mark.parametrize("noun", world.CLASS_NOUNS)
def test_every_class_renders_in_every_place_and_style(noun):
    rng = np.random.default_rng(1)
    for place in world.PLACE_NAMES:
        scene = world.random_pose(rng, world.random_identity(rng, noun), place)
        assert np.asarray(world.render(scene)).std() > 5.0
    for style in world.STYLES:
        styled = world.replace(scene, style=style)
        assert difference(world.render(styled), world.render(scene)) > 1.0


def test_accessories_and_expressions_change_the_picture():
    rng = np.random.default_rng(2)
    for noun in world.LIVING:
        plain = world.random_pose(rng, world.random_identity(rng, noun), "snow")
        bare = world.render(plain)
        for kind in world.ACCESSORIES:
            worn = world.replace(plain, accessory=kind)
            assert difference(bare, world.render(worn)) > 0.8, (noun, kind)
        for expression in world.EXPRESSIONS:
            felt = world.replace(plain, expression=expression)
            assert difference(bare, world.render(felt)) > 0.2, (noun, expression)


def test_a_subject_keeps_its_identity_over_photographs():
    scenes = world.subject_scenes(11, "dog")
    assert len(world.subject(11, "dog")) == len(scenes) == 5
    assert len({scene.identity for scene in scenes}) == 1
    assert len({scene.place for scene in scenes}) == 5
    assert scenes[0].identity != world.subject_scenes(12, "dog")[0].identity


def test_subjects_of_different_seeds_look_different():
    rng = np.random.default_rng(0)
    pose = world.random_pose(rng, world.random_identity(rng, "cat"), "grass")
    identities = [world.subject_scenes(seed, "cat")[0].identity for seed in range(6)]
    images = [world.render(world.replace(pose, identity=identity)) for identity in identities]
    apart = [difference(a, b) for i, a in enumerate(images) for b in images[:i]]
    assert min(apart) > 1.0


def test_write_photographs(tmp_path):
    written = world.write_photographs(tmp_path, num_subjects=5, num_classes=3, seed=4)
    assert len({subject_id for subject_id, _ in written}) == 5
    assert len({noun for _, noun in written}) == 3
    for subject_id, noun in written:
        assert noun in world.CLASS_NOUNS
        files = sorted(path.name for path in (tmp_path / subject_id).iterdir())
        assert files == ["00.png", "01.png", "02.png", "03.png", "04.png"]
    again = world.write_photographs(tmp_path / "again", num_subjects=1, num_classes=3, seed=4)
    first = f"{again[0][0]}/00.png"
    assert (tmp_path / first).read_bytes() == (tmp_path / "again" / first).read_bytes()


@pytest.mark.parametrize(("num_subjects", "num_classes"), [(0, 1), (3, 0), (3, 17)])
def test_write_photographs_rejects_impossible_counts(tmp_path, num_subjects, num_classes):
    with pytest.raises(ValueError, match="num_"):
        world.write_photographs(tmp_path, num_subjects=num_subjects, num_classes=num_classes)


def test_a_subject_has_at_most_one_photograph_per_place():
    with pytest.raises(ValueError, match="num_images"):
        world.subject(1, "dog", num_images=len(world.PLACE_NAMES) + 1)


# --- captions and tokens --------------------------------------------------------------------------


def test_captions_use_known_words_and_match_the_scene():
    rng = np.random.default_rng(3)
    known = set(caption_words())
    for _ in range(300):
        scene = world.random_scene(rng)
        words = caption(scene, rng).replace("-", " ").split()
        assert set(words) <= known
        if "wearing" in words:
            assert scene.accessory in words
        if scene.style == "sketch":
            assert scene.identity.colour not in words


def test_merges_make_one_token_of_every_word():
    words = ["dog", "dogs", "sks", "do", "god", "zwx", "wx"]
    merges = grow_merges(words)
    joined = {a + b for a, b in merges}
    assert {word + "</w>" for word in words} <= joined
    assert len(set(merges)) == len(merges)
    assert len(set(byte_symbols())) == 256


def test_words_and_rare_strings_are_one_token_each(tmp_path):
    from transformers import CLIPTokenizer

    write_tokenizer(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    rare = rare_strings()
    assert len(tokenizer) >= 2_000
    assert len(set(rare)) >= 1_000
    assert "sks" in rare
    assert not set(rare) & set(caption_words())
    for word in (*rare, *caption_words(), "teapot", "sneaker", "backpack"):
        assert len(tokenizer.tokenize(word)) == 1, word
    ids = tokenizer("a sks dog", padding="max_length").input_ids
    assert len(ids) == tokenizer.model_max_length
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id


# --- the weights ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipe():
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(
        MINIATURE_FOLDER, safety_checker=None, local_files_only=True
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_weights_are_small_safe_and_half_precision():
    from safetensors import safe_open

    files = [path for path in MINIATURE_FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 25_000_000
    assert {path.suffix for path in files} <= {".json", ".txt", ".md", ".yaml", ".safetensors"}
    assert (MINIATURE_FOLDER / "README.md").exists()
    for path in files:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="np") as tensors:
                kinds = {tensors.get_slice(key).get_dtype() for key in tensors.keys()}  # noqa: SIM118
            assert kinds == {"F16"}, path
            assert path.stat().st_mode & 0o044 == 0o044


def test_the_configurations_of_the_parts_match(pipe):
    config = pipe.text_encoder.config
    assert config.vocab_size == len(pipe.tokenizer)
    assert config.eos_token_id == pipe.tokenizer.eos_token_id
    assert config.max_position_embeddings == pipe.tokenizer.model_max_length
    assert pipe.unet.config.sample_size == 16
    assert pipe.unet.config.cross_attention_dim == config.hidden_size
    assert pipe.unet.config.in_channels == pipe.vae.config.latent_channels
    assert pipe.scheduler.config.prediction_type == "epsilon"


def test_embeddings_of_rare_tokens_have_the_norm_of_others(pipe):
    embeddings = pipe.text_encoder.get_input_embeddings().weight.detach()
    ids = pipe.tokenizer.convert_tokens_to_ids
    rare = embeddings[ids([string + "</w>" for string in rare_strings()])].norm(dim=1)
    known = embeddings[ids([word + "</w>" for word in world.CLASS_NOUNS])].norm(dim=1)
    assert 0.5 < float(rare.mean() / known.mean()) < 1.5


def test_the_base_draws_night_darker_and_is_deterministic(pipe):
    import torch

    def mean(prompt: str) -> float:
        generator = torch.Generator().manual_seed(0)
        images = pipe(
            prompt,
            num_inference_steps=12,
            num_images_per_prompt=2,
            generator=generator,
            output_type="np",
        ).images
        assert images.shape == (2, 64, 64, 3)
        return float(images.mean())

    day, night = mean("a photo of a dog in the snow"), mean("a photo of a dog at night")
    assert day > night + 0.15
    assert mean("a photo of a dog at night") == night


# --- training -------------------------------------------------------------------------------------


def test_progress_reaches_1_at_the_deadline(monkeypatch):
    from dbray.miniature.training import Progress

    now = [1_000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    progress = Progress(_last=1_000.0)
    for seconds in (1.0, 1.0, 50.0, 1.0, 46.0):  # paused twice
        now[0] += seconds
        before = progress.fraction
        progress.advance(1_100.0, images=8)
        assert progress.fraction > before
    assert progress.fraction == pytest.approx(0.99)
    assert progress.images == 40
    now[0] = 1_101.0
    progress.advance(1_100.0, images=8)
    assert progress.fraction == 1.0
    assert progress.learning_rate(1.0, warmup_steps=1) == pytest.approx(0.01)


def test_min_snr_weights():
    import torch

    from dbray.bases.schedule import NoiseSchedule
    from dbray.miniature import networks
    from dbray.miniature.denoiser import SNR_GAMMA

    schedule = NoiseSchedule(networks.build_scheduler().alphas_cumprod, "epsilon")
    weights = schedule.min_snr_weights(torch.arange(schedule.num_timesteps), SNR_GAMMA)
    assert float(weights[-1]) == pytest.approx(1.0)
    assert 0.0 < float(weights[0]) < 0.01


def test_textures_are_images():
    from dbray.miniature.data import texture

    image = texture(np.random.default_rng(0))
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.uint8


def test_accessory_cells_cover_the_accessory():
    from dbray.miniature.data import accessory_cells

    rng = np.random.default_rng(0)
    scene = replace(
        world.random_scene(rng, "dog"), accessory="hat", style=None, from_behind=False, tilt=0.0
    )
    cells = accessory_cells(scene, np.asarray(world.render(scene)))
    rows = np.flatnonzero(cells.any(axis=1))
    assert 0 < cells.sum() < 80
    assert rows.max() < 12  # on a head, not on the floor
    bare = replace(scene, accessory=None)
    assert not accessory_cells(bare, np.asarray(world.render(bare))).any()


def test_batches_weight_accessories_only_if_named():
    from dbray.miniature.data import NUM_CAPTIONS
    from dbray.miniature.denoiser import NAMED_SHARE, Wordings

    num_scenes = 50
    ids = np.arange(num_scenes * NUM_CAPTIONS, dtype=np.uint16)[:, None] + 1
    names = np.zeros(len(ids), dtype=bool)
    names[: 2 * NUM_CAPTIONS] = True
    wordings = Wordings(ids, names, np.flatnonzero(names), np.zeros(1, dtype=np.uint16), 1_000)
    scenes, words, named = wordings.draw(np.random.default_rng(0), 20_000)
    blank = words[:, 0] == 0
    assert np.array_equal((words[~blank, 0] - 1) // NUM_CAPTIONS, scenes[~blank])
    assert np.array_equal(named[~blank], names[words[~blank, 0] - 1])
    assert not named[blank].any()
    assert named.mean() == pytest.approx(NAMED_SHARE + (1 - NAMED_SHARE) * 0.9 * 2 / 50, abs=0.02)
    assert (scenes[blank] < 2).mean() == pytest.approx(2 / 50, abs=0.02)
    plain = Wordings(ids, names & False, np.zeros(0, dtype=int), np.zeros(1, np.uint16), 1_000)
    assert not plain.draw(np.random.default_rng(0), 100)[2].any()


@pytest.mark.timeout(200)
def test_training_runs_resumes_and_exports(tmp_path, monkeypatch):
    import torch
    from diffusers import StableDiffusionPipeline

    from dbray.miniature import data, train

    monkeypatch.setattr(data, "SHARD_SIZE", 40)
    monkeypatch.setattr(data, "IDENTITIES_PER_SHARD", 12)
    folder, weights = tmp_path / "work", tmp_path / "weights"
    weights.mkdir()
    (weights / "README.md").write_text("card\n")
    common = ["--folder", str(folder), "--weights", str(weights), "--processes", "1"]
    threads = torch.get_num_threads()
    try:
        assert train.main(["render", "--num-shards", "1", *common]) == 0
        for stage in ("vae", "encode", "unet", "unet", "decoder", "clip", "vit", "export"):
            minutes = "0.1" if stage == "unet" else "0.03"  # it has to take steps twice
            arguments = [stage, "--minutes", minutes, "--batch-size", "4", *common]
            before = torch.load(folder / "unet.pt") if (folder / "unet.pt").exists() else None
            assert train.main(arguments) == 0
            if stage == "unet" and before is not None:
                after = torch.load(folder / "unet.pt")
                assert after["progress"]["step"] > before["progress"]["step"] > 0
    finally:
        torch.set_num_threads(threads)
    assert (weights / "README.md").read_text() == "card\n"
    assert not list(tmp_path.glob("weights.*"))
    index = json.loads((weights / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    pipe = StableDiffusionPipeline.from_pretrained(weights, safety_checker=None)
    assert pipe.text_encoder.dtype == pipe.unet.dtype == torch.float32
    for name in ("clip", "vit"):
        found = embedders.resolve(str(tmp_path / "embedders" / name))
        [picture] = world.subject(0, "dog", 1)
        assert embedders.load(found).images([np.asarray(picture)]).isfinite().all()


def test_all_stages_share_one_time_of_day(monkeypatch):
    from dbray.miniature import train

    now, seen = [1_000.0], {}
    monkeypatch.setattr(time, "time", lambda: now[0])
    monkeypatch.setattr(train, "_next", lambda time_of_day: now[0] + 1_200)

    def run_stage(options, stage, deadline):
        seen[stage] = now[0] = deadline

    monkeypatch.setattr(train, "_run_stage", run_stage)
    assert train.main(["all", "--until", "12:00", "--processes", "1"]) == 0
    assert list(seen) == list(train.STAGES)
    ends = [1_000.0]
    usual = {stage: train.MINUTES[stage] for stage in train.STAGES if stage in train.MINUTES}
    for stage, minutes in usual.items():
        ends.append(ends[-1] + 1_200 * minutes / sum(usual.values()))
        assert seen[stage] == pytest.approx(ends[-1])
    assert seen["export"] == pytest.approx(2_200)
    assert train.main(["unet", "--until", "12:00", "--processes", "1"]) == 0
    assert seen["unet"] == pytest.approx(2_200 + 1_200)


def test_a_stage_without_its_predecessor_is_an_error(tmp_path):
    from dbray.miniature import train

    (tmp_path / "cache").mkdir()
    with pytest.raises(FileNotFoundError, match="vae"):
        train.main(["encode", "--folder", str(tmp_path), "--processes", "1"])


def test_the_text_encoder_has_tensor_names_of_transformers_4():
    from safetensors.torch import load_file

    names = load_file(MINIATURE_FOLDER / "text_encoder" / "model.safetensors").keys()
    assert all(name.startswith("text_model.") for name in names)
