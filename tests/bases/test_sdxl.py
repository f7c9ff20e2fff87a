"""Stable Diffusion XL compared with diffusers' pipeline: text, sizes, images, losses, methods."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest
import torch
from kit.families import FAMILIES
from kit.training import IDENTIFIER, Trained, check_published, contents_of, recipe_of
from kit.worlds import load_job
from safetensors.torch import load_file, save_file

from dbray import bases
from dbray.bases import Compute
from dbray.bases.condition import Condition
from dbray.bases.generate import Sampling, generate
from dbray.errors import BaseError
from dbray.method import tokens
from dbray.method.adapter import inject
from dbray.method.lora import FILE
from dbray.method.low_rank import LowRank
from dbray.method.methods import method_of
from dbray.records import previews
from dbray.records.models import Registry
from dbray.run.job import run_job
from dbray.spec.resources import Resources
from dbray.storage.store import Store

SDXL = FAMILIES["sdxl"]
PROMPT = "a photo of zb dog"
PROMPTS = [PROMPT, "a cat on the beach", ""]
DDIM = Sampling("ddim", steps=2, guidance=5.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return SDXL.build(tmp_path_factory.mktemp("sdxl") / "base")


@pytest.fixture(scope="module")
def base(folder):
    return bases.resolve(str(folder))


@pytest.fixture(scope="module")
def loaded(base, folder, tmp_path_factory):
    """Both variants, as dbray's backbone and as diffusers' pipeline."""
    flat = SDXL.build(tmp_path_factory.mktemp("flat") / "base", deep=False)
    return {
        name: (bases.load(found, Compute(resolution=32)), SDXL.load(found.folder))
        for name, found in {"deep": base, "flat": bases.resolve(str(flat))}.items()
    }


@pytest.fixture(params=["deep", "flat"])
def both(request, loaded):
    return loaded[request.param]


@pytest.fixture
def backbone(loaded):
    return loaded["deep"][0]


@pytest.fixture
def pipeline(loaded):
    return loaded["deep"][1]


@pytest.fixture
def copied(tmp_path):
    return SDXL.build(tmp_path / "base")


def seen_by(unet, call):
    """Return the inputs of a UNet besides latents at its first step, while `call` runs."""
    seen = []
    hook = unet.register_forward_pre_hook(
        lambda _module, _args, options: seen.append(options), with_kwargs=True
    )
    try:
        call()
    finally:
        hook.remove()
    return [seen[0]["encoder_hidden_states"], *seen[0]["added_cond_kwargs"].values()]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("size", [(32, 32), (32, 48)])
def test_conditions_equal_those_of_the_pipeline(both, prompt, size):
    backbone, pipeline = both
    width, height = size
    wanted = seen_by(pipeline.unet, lambda: SDXL.draw(
        pipeline, prompt, guidance_scale=1.0, width=width, height=height
    ))  # fmt: skip

    def denoise():  # as in a training step
        latents = torch.zeros(1, *backbone.latent_shape(size))
        network = backbone.network(("unet",))
        network(latents, torch.tensor([1]), backbone.condition([prompt]).tensors)

    for mine, theirs in zip(seen_by(backbone.models["unet"], denoise), wanted, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_network_with_text_encoders_predicts_the_same(base, backbone, prompt):
    network = backbone.network(("unet", *base.family.text_encoders))
    latents = torch.randn(1, *backbone.latent_shape())
    with torch.no_grad():
        found = network(latents, torch.tensor([7]), backbone.tokenize([prompt]).tensors)
    wanted = backbone.denoise(latents, torch.tensor([7]), backbone.condition([prompt]))
    assert torch.equal(found, wanted)


def test_rows_of_a_batch_are_independent(backbone):
    latents = torch.randn(3, *backbone.latent_shape())
    timesteps = torch.tensor([1, 500, 999])
    condition = backbone.condition(PROMPTS)
    together = backbone.denoise(latents, timesteps, condition)
    for row in range(3):
        rows = slice(row, row + 1)
        alone = backbone.denoise(latents[rows], timesteps[rows], condition[rows])
        torch.testing.assert_close(together[rows], alone, rtol=1e-4, atol=1e-5)


def drawn(pipeline, backbone, sampler="ddim", **options):
    """Return the pipeline's image with dbray's sampler, as bytes."""
    pipeline.scheduler = backbone.scheduler(sampler, 2)
    image = SDXL.draw(pipeline, PROMPT, guidance_scale=5.0, **options)
    return np.round(image * 255)


@pytest.mark.parametrize("negative", ["", "a cat"])
@pytest.mark.parametrize("size", [(32, 32), (32, 48)])
@pytest.mark.parametrize("sampler", ["ddim", "dpm++_sde"])
def test_images_equal_those_of_the_pipeline(both, sampler, size, negative):
    backbone, pipeline = both
    sampling = Sampling(sampler, 2, 5.0, negative)
    [image] = generate(backbone, [PROMPT], [0], sampling, size=size)
    width, height = size
    wanted = drawn(pipeline, backbone, sampler, width=width, height=height,
                   negative_prompt=negative or None)  # fmt: skip
    assert np.abs(image - wanted).max() <= 1


def test_the_index_sets_whether_no_negative_prompt_means_zeros(copied):
    found = {}
    for zeros in (True, False):
        file = copied / "model_index.json"
        index = json.loads(file.read_text()) | {"force_zeros_for_empty_prompt": zeros}
        file.write_text(json.dumps(index))
        base = bases.resolve(str(copied))
        backbone = bases.load(base, Compute(resolution=32))
        [image] = generate(backbone, [PROMPT], [0], DDIM)
        assert np.abs(image - drawn(SDXL.load(copied), backbone)).max() <= 1
        found[base.digest] = image
    assert len(found) == 2, "bases with different images would share class images"
    assert np.abs(np.subtract(*(image.astype(int) for image in found.values()))).max() > 1


def test_the_loss_of_a_step_equals_that_of_a_plain_loop(base, pipeline):
    from diffusers import DDPMScheduler

    from dbray.training.batches import Share, draw_batches
    from dbray.training.data import Latents, TrainingData
    from dbray.training.engine import make_engine
    from dbray.training.loop import finetune

    recipe = recipe_of("full", steps=1, prior_weight=0.7)
    backbone = bases.load(base)
    method = method_of(recipe.method)
    network = method.network(backbone, recipe)
    pixels = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3), dtype=np.uint8)
    latents = [Latents(mean, 0 * mean) for mean in backbone.encode(pixels)[0].split(1)]
    prompts = [f"a {IDENTIFIER} dog", "a dog"]
    rows = [method.condition(backbone, recipe, [prompt]) for prompt in prompts]
    data = TrainingData("rex", latents[0], ((0,),), rows[0], latents[1], rows[1])
    engine = make_engine(network, recipe, Resources(), torch.device("cpu"))
    [point] = finetune(engine, backbone.schedule, data, recipe)

    batch = draw_batches(data, recipe, backbone.schedule, 0, Share())[0]
    noiser = DDPMScheduler.from_config(pipeline.scheduler.config)
    scale, losses = pipeline.vae.config.scaling_factor, []
    for row, prompt in enumerate(prompts):
        image = torch.from_numpy(pixels[row : row + 1]).permute(0, 3, 1, 2) / 127.5 - 1
        timestep, noise = batch.timesteps_B[row : row + 1], batch.target_BCHW[row : row + 1]
        with torch.no_grad():
            clean = pipeline.vae.encode(image).latent_dist.mean * scale
            text, _, pooled, _ = pipeline.encode_prompt(prompt, device="cpu")
            added = {"text_embeds": pooled, "time_ids": torch.tensor([[32.0, 32, 0, 0, 32, 32]])}
            predicted = pipeline.unet(
                noiser.add_noise(clean, noise, timestep), timestep, text, added_cond_kwargs=added
            ).sample
        losses.append((predicted - noise).square().mean().item())
    assert point.loss == pytest.approx(losses[0] + 0.7 * losses[1], rel=1e-5)


METHODS = {
    "full": recipe_of("full"),
    "full with text": recipe_of("full", train_text_encoder=True, identifier_rate=0.02),
    "lora": recipe_of({"kind": "lora", "rank": 2}),
    "lora with text": recipe_of({"kind": "lora", "rank": 2}, train_text_encoder=True),
    "pivotal": recipe_of({"kind": "pivotal", "rank": 2}),
    "textual inversion": recipe_of("textual_inversion"),
}


@pytest.fixture(scope="module")
def trained(base):
    """The result of each recipe on the base; trained once."""
    return cache(lambda name: Trained(base, METHODS[name], checkpoint=2))


@pytest.mark.parametrize("name", METHODS)
def test_published_files_predict_as_the_trained_network(base, trained, name):
    found = trained(name)
    check_published(base, found)
    assert found.resumed == found.files, "a restart at a checkpoint does not continue bit for bit"


def test_text_encoders_are_trained_if_the_recipe_says_so(trained):
    found = trained("full with text")
    assert found.files.keys() == {
        "unet.safetensors", "text_encoder.safetensors", "text_encoder_2.safetensors", tokens.FILE
    }  # fmt: skip
    changed = {
        name.partition(".")[0]
        for name, value in found.network.named_parameters()
        if not torch.equal(value, found.begun[name])
    }
    assert changed == {"unet", "text_encoder", "text_encoder_2"}


def test_the_identifier_is_learnt_in_both_encoders(base, trained):
    found = trained("textual inversion")
    changed = {name for name, value in found.network.named_parameters()
               if not torch.equal(value, found.begun[name])}  # fmt: skip
    assert {name.partition(".")[0] for name in changed} == set(base.family.text_encoders)
    assert all(name.endswith("token_embedding.rows") for name in changed)


def test_diffusers_draws_the_same_image_with_a_published_adapter(base, folder, trained, tmp_path):
    found = trained("lora with text")
    (tmp_path / FILE).write_bytes(found.files[FILE])
    backbone = bases.load(base, Compute(resolution=32))
    method = method_of(METHODS["lora"].method)
    backbone.resident.put(method.read(contents_of(found.files), backbone.resident.layouts))
    [image] = generate(backbone, [PROMPT], [0], DDIM)
    pipeline = SDXL.load(folder)
    before = drawn(pipeline, backbone)
    pipeline.load_lora_weights(tmp_path, weight_name=FILE)
    after = drawn(pipeline, backbone)
    assert np.abs(image - after).max() <= 1
    assert np.abs(before - after).max() > 1


def test_the_autoencoder_computes_in_float32_in_every_precision(base, backbone):
    half = bases.load(base, Compute(precision="bf16", resolution=32))
    assert {parameter.dtype for parameter in half.models["vae"].parameters()} == {torch.float32}
    pixels = np.random.default_rng(0).integers(0, 255, (1, 32, 32, 3), dtype=np.uint8)
    for mine, theirs in zip(half.encode(pixels), backbone.encode(pixels), strict=True):
        assert torch.equal(mine, theirs)


def test_targets_of_the_tiny_base_match_the_family_count(base):
    family, config = base.family, base.layout.config("unet")
    for group in ("attention", "feed_forward"):
        unet = bases.load(base).models["unet"]
        adapter = inject(unet, family.targets[group], LowRank(2, 2))
        assert len(adapter.layers) == family.num_targets(config, group)


def test_a_full_size_unet_has_560_attention_targets(base):
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280), transformer_layers_per_block=(1, 2, 10),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(5, 10, 20), cross_attention_dim=2048, use_linear_projection=True,
            addition_embed_type="text_time", addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )  # fmt: skip
    assert sum(parameter.numel() for parameter in unet.parameters()) == 2_567_463_684
    for group, number in {"attention": 560, "feed_forward": 140}.items():
        assert base.family.num_targets(dict(unet.config), group) == number
    with torch.device("meta"):
        adapter = inject(unet, base.family.targets["attention"], LowRank(16, 16))
    assert len(adapter.layers) == 560
    assert base.family.default_targets == ("attention",)


def change(folder, part, **values):
    file = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("part", "values", "reason"),
    [
        ("unet", {"projection_class_embeddings_input_dim": 5 * 8 + 32}, "72, not 80"),  # refiner
        ("unet", {"cross_attention_dim": 24}, "is 24, but its texts are 40"),
        ("unet", {"addition_embed_type": None}, "None, not 'text_time'"),
        ("unet", {"in_channels": 9}, "in_channels of its UNet is 9"),  # inpainting
        ("unet", {"time_cond_proj_dim": 256}, "time_cond_proj_dim is 256"),
        ("vae", {"latents_mean": [0.0] * 4}, "normalised by channel"),
        ("scheduler", {"_class_name": "EDMDPMSolverMultistepScheduler"}, "EDM"),
        ("scheduler", {"prediction_type": "sample"}, "it predicts 'sample'"),
        ("text_encoder_2", {"model_type": "t5"}, "t5"),
    ],
)
def test_bases_with_unsupported_configurations_are_rejected(copied, part, values, reason):
    change(copied, part, **values)
    with pytest.raises(BaseError, match=reason):
        bases.resolve(str(copied))


def test_a_second_encoder_without_projection_is_rejected(copied):
    file = copied / "text_encoder_2" / "model.safetensors"
    tensors = load_file(file)
    del tensors["text_projection.weight"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(BaseError, match="text_projection of its text_encoder_2 is None"):
        bases.resolve(str(copied))


@pytest.mark.parametrize(
    ("name", "is_distilled"),
    [
        ("sdxl-turbo", True),
        ("SDXL_Lightning_4step", True),
        ("models--x--Hyper-SD/snapshots/abc", True),
        ("lcm-sdxl", True),
        ("hyperreal-xl", False),
        ("turbo/stable-diffusion-xl", False),
    ],
)
def test_distilled_bases_are_known_by_name(tmp_path, name, is_distilled):
    base = bases.resolve(str(SDXL.build(tmp_path / name)))
    assert base.family.name == "Stable Diffusion XL"
    assert bool(base.distilled) == is_distilled


def test_rows_can_be_stacked(backbone):
    rows = [backbone.condition([prompt])[0] for prompt in PROMPTS]
    stacked = Condition.stack(rows)
    assert len(stacked) == 3
    assert set(stacked.tensors) == {"text", "pooled", "pixels_per_latent"}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_job_publishes_adapters_with_previews(ray_session, folder, tmp_path):
    recipe = {"method": {"kind": "lora", "rank": 4}}
    job = load_job(tmp_path, folder, {"ace": "cat", "bob": "dog"}, recipe=recipe)
    assert run_job(job).exit_code == 0
    store = Store(job.storage)
    for name in ("ace", "bob"):
        record = Registry(store).find(name)
        assert record.files == (FILE,)
        assert len(previews.annex(store, record.name).names()) > 3
