"""Bases: which are accepted, and what a loaded one samples and saves."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from dbray import bases
from dbray.bases import Compute, clip_layout
from dbray.bases import backbone as backbone_module
from dbray.errors import BaseError
from dbray.export.diffusers import export
from dbray.export.source import Source


@pytest.fixture
def copied(tiny_base, tmp_path):
    """Return a copy of the tiny base whose configurations a test may change."""
    return shutil.copytree(tiny_base, tmp_path / "base")


def change(folder, part, **values):
    names = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}
    file = folder / part / names.get(part, "config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("part", "values", "reason"),
    [
        ("unet", {"addition_embed_type": "text_time"}, "text_time"),  # Stable Diffusion XL
        ("unet", {"in_channels": 9}, "in_channels of its UNet is 9"),  # inpainting
        ("unet", {"_class_name": "Kandinsky3UNet"}, "Kandinsky3UNet"),
        ("vae", {"_class_name": "AutoencoderTiny"}, "AutoencoderTiny"),
        ("text_encoder", {"model_type": "t5"}, "t5"),
    ],
)
def test_unsupported_families_are_rejected_before_loading(copied, part, values, reason):
    change(copied, part, **values)
    with pytest.raises(BaseError, match=reason):
        bases.resolve(str(copied))


def damage(file, content=None):
    """Replace the content of a file; None removes it."""
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)


def only_fp16(base):
    file = base / "unet" / UNET
    file.rename(file.with_name("diffusion_pytorch_model.fp16.safetensors"))


def name_no_shards(part):
    (part / UNET).unlink()
    (part / f"{UNET}.index.json").write_text("{}")


def halve(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


UNET = "diffusion_pytorch_model.safetensors"
FAULTS = {
    "no index": (lambda base: damage(base / "model_index.json"), "no model_index.json"),
    "index of nothing": (
        lambda base: damage(base / "model_index.json", b"[]"),
        "not a JSON object",
    ),
    "no configuration": (lambda base: damage(base / "vae" / "config.json"), "vae has no readable"),
    "no scheduler": (lambda base: shutil.rmtree(base / "scheduler"), "scheduler has no readable"),
    "other schedule": (lambda base: change(base, "scheduler", prediction_type="v"), "predicts 'v'"),
    "no tokenizer": (lambda base: shutil.rmtree(base / "tokenizer"), "tokenizer has no readable"),
    "no vocabulary": (lambda base: damage(base / "tokenizer/merges.txt"), "neither tokenizer.json"),
    "no size": (lambda base: change(base, "unet", sample_size=None), "sample_size .* is None"),
    "only fp16": (only_fp16, r"only diffusion_pytorch_model\.fp16\.safetensors.*without a variant"),
    "no weights": (lambda base: damage(base / "unet" / UNET), "only nothing"),
    "half the weights": (lambda base: halve(base / "unet" / UNET), "not a whole safetensors"),
    "a pointer": (
        lambda base: damage(base / "vae" / UNET, b"version https://git-lfs"),
        "not a whole safetensors",
    ),
    "no list of shards": (
        lambda base: (base / "unet" / UNET).rename(base / "unet" / f"{UNET}.index.json"),
        "no readable",
    ),
    "shards of nothing": (lambda base: name_no_shards(base / "unet"), "lists no files"),
    "misspelt advice": (lambda base: damage(base / "dbray.yaml", b"recipe:\n  stepz: 1"),
                        r"dbray\.yaml:2: recipe\.stepz"),
    "advice by name": (lambda base: damage(base / "dbray.yaml", b"methods: {lora: {preset: lora}}"),
                       "presets are for jobs; write the values instead"),
    "advice for no method": (lambda base: damage(base / "dbray.yaml", b"methods: {dora: {}}"),
                             r"methods\.dora"),
    "advice in a list": (lambda base: damage(base / "dbray.yaml", b"- 1"), r"dbray\.yaml:1"),
    "advice that is no YAML": (lambda base: damage(base / "dbray.yaml", b"a: ["), "not valid YAML"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_bases_are_rejected_by_resolve(copied, fault):
    spoil, reason = FAULTS[fault]
    spoil(copied)
    with pytest.raises(BaseError, match=f"(?s)base '{copied}': .*{reason}"):
        bases.resolve(str(copied))


def test_sharded_weights_are_counted_and_loaded(copied):
    whole = bases.resolve(str(copied))
    num_parameters = whole.num_parameters("unet")
    wanted = bases.load(whole).models["unet"].state_dict()
    unet = UNet2DConditionModel.from_pretrained(copied / "unet")
    (copied / "unet" / UNET).unlink()
    unet.save_pretrained(copied / "unet", max_shard_size="100KB")
    assert len(list((copied / "unet").glob("*.safetensors"))) > 1
    sharded = bases.resolve(str(copied))
    assert sharded.num_parameters("unet") == num_parameters
    found = bases.load(sharded).models["unet"].state_dict()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    next((copied / "unet").glob("*-of-*")).unlink()
    with pytest.raises(BaseError, match=r"no diffusion_pytorch_model-\d+-of-"):
        bases.resolve(str(copied))


def test_only_fields_in_the_makers_file_are_defaults(copied):
    (copied / "dbray.yaml").write_text("recipe:\n  steps: 9\nprior:\n")
    with pytest.raises(BaseError, match="prior"):
        bases.resolve(str(copied))
    (copied / "dbray.yaml").write_text("recipe:\n  steps: 9\n")
    assert bases.resolve(str(copied)).defaults == {"recipe": {"steps": 9}}
    (copied / "dbray.yaml").write_text("# nothing\n")
    assert bases.resolve(str(copied)).defaults == {}


def test_a_broken_tokenizer_is_reported(copied):
    damage(copied / "tokenizer" / "vocab.json", b"{")
    with pytest.raises(BaseError, match="tokenizer cannot be loaded"):
        bases.load_tokenizer(bases.resolve(str(copied)))


@pytest.mark.parametrize("revision", [None, "main", "v1.5", "a" * 39])
def test_a_hub_id_needs_a_commit(revision):
    with pytest.raises(BaseError, match="40 hex digits"):
        bases.resolve("owner/name", revision)


def test_a_missing_folder_is_reported_as_a_folder():
    with pytest.raises(BaseError, match="base 'models/sd15': there is no such folder"):
        bases.resolve("models/sd15")


def test_an_invalid_hub_id_is_reported():
    with pytest.raises(BaseError, match=r"base 'my model/x y': .*check the id"):
        bases.resolve("my model/x y", "a" * 40)


COMMIT = "c" * 40


@pytest.fixture
def node(tiny_base, tmp_path, monkeypatch):
    """Become another node at each call, with its own cache of the hub; returns its snapshot."""

    def enter(name):
        cache = tmp_path / name
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
        snapshot = cache / "models--owner--name" / "snapshots" / COMMIT
        return shutil.copytree(tiny_base, snapshot)

    return enter


def test_a_base_from_the_hub_is_found_on_every_node(node):
    first = node("first")
    base = bases.resolve("owner/name", COMMIT)
    assert (base.folder, base.revision) == (first, COMMIT)
    second = node("second")
    found = bases.find_on_this_node(base)
    assert (found.folder, found.digest) == (second, base.digest)
    shutil.rmtree(second)
    with pytest.raises(BaseError, match=r"base 'owner/name': .*cannot be downloaded from the hub"):
        bases.find_on_this_node(base)


def test_a_base_from_the_hub_is_the_same_on_every_node(node):
    node("first")
    base = bases.resolve("owner/name", COMMIT)
    change(node("second"), "scheduler", clip_sample=True)
    with pytest.raises(BaseError, match=r"base 'owner/name': .*second.* is not what the job began"):
        bases.find_on_this_node(base)


def test_a_folder_must_exist_on_every_node(copied):
    base = bases.resolve(str(copied), COMMIT)  # the revision of a folder has no effect
    assert bases.find_on_this_node(base) is base
    shutil.rmtree(copied)
    with pytest.raises(BaseError, match=f"base '{copied}': .*every node needs it at the same path"):
        bases.find_on_this_node(base)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_latents_are_not_clipped_by_default(copied, sampler):
    file = copied / "scheduler" / "scheduler_config.json"
    schedule = {key: value for key, value in json.loads(file.read_text()).items()
                if key != "clip_sample"}  # fmt: skip
    file.write_text(json.dumps(schedule | {"_class_name": "EulerDiscreteScheduler"}))
    scheduler = bases.load(bases.resolve(str(copied))).scheduler(sampler, 10)
    latents = torch.full((1, 4, 2, 2), 3.0)
    found = scheduler.step(torch.zeros_like(latents), scheduler.timesteps[-1], latents)
    assert found.pred_original_sample.min() > 2.9


def test_missing_parts_in_the_index_are_not_exported(copied, tmp_path):
    file = copied / "model_index.json"
    more = {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "requires_safety_checker": True,
    }
    file.write_text(json.dumps(json.loads(file.read_text()) | more))
    with pytest.raises(OSError, match=r"no file named|Can't load"):
        StableDiffusionPipeline.from_pretrained(copied, local_files_only=True)
    export(Source(bases.resolve(str(copied))), tmp_path / "saved")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "saved", local_files_only=True)
    assert pipeline.safety_checker is None
    assert not pipeline.config["requires_safety_checker"]


def test_checkpointing_recomputes_every_part_with_equal_gradients(tiny_base):
    base = bases.resolve(str(tiny_base))
    found = {}
    for checkpointed in (False, True):
        backbone = bases.load(base, Compute(gradient_checkpointing=checkpointed))
        trained = backbone.network(("unet", "text_encoder")).requires_grad_(True)
        layers = trained.get_submodule("text_encoder").encoder.layers
        calls = []
        layers[0].layer_norm1.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(2, 4, 8, 8, generator=generator)
        ids = torch.randint(0, 90, (2, 16), generator=generator)
        trained(latents, torch.tensor([10, 500]), {"token_ids": ids}).square().mean().backward()
        assert len(calls) == 1 + checkpointed
        found[checkpointed] = {name: p.grad for name, p in trained.named_parameters()}
    for name, gradient in found[False].items():
        if gradient is not None:
            torch.testing.assert_close(found[True][name], gradient, msg=name)


def test_the_autoencoder_processes_few_large_images_at_once(tiny_base, monkeypatch):
    backbone = bases.load(bases.resolve(str(tiny_base)))
    pixels = np.random.default_rng(0).integers(0, 255, (5, 32, 32, 3), dtype=np.uint8)
    means, deviations = backbone.encode(pixels)
    images = backbone.decode(means)
    monkeypatch.setattr(backbone_module, "_AUTOENCODED_PIXELS", 2 * 32 * 32)
    sizes = []
    for name in ("encode", "decode"):
        whole = getattr(backbone.models["vae"], name)
        monkeypatch.setattr(
            backbone.models["vae"], name, lambda x, call=whole: (sizes.append(len(x)), call(x))[1]
        )
    torch.testing.assert_close(backbone.encode(pixels), (means, deviations))
    assert np.abs(backbone.decode(means).astype(int) - images).max() <= 1
    assert sizes == [2, 2, 1] * 2


def rename(copied, change):
    """Rename the text encoder's tensors; None leaves one out."""
    file = copied / "text_encoder" / "model.safetensors"
    named = {change(name): tensor for name, tensor in load_file(file).items()}
    save_file({name: tensor for name, tensor in named.items() if name is not None}, file)


@pytest.mark.parametrize("prefix", ["", "text_model.", "cond_stage_model.transformer.text_model."])
def test_a_text_encoder_is_loaded_with_any_common_prefix(copied, prefix):
    wanted = bases.load(bases.resolve(str(copied))).models["text_encoder"].state_dict()
    start = clip_layout.prefix_of(load_file(copied / "text_encoder" / "model.safetensors"))
    rename(copied, lambda name: prefix + name.removeprefix(start))
    found = bases.load(bases.resolve(str(copied))).models["text_encoder"].state_dict()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda name: None if "layers.0.mlp.fc1.bias" in name else name, "lacks .*mlp.fc1.bias, 1"),
        (lambda name: name.replace("self_attn", "attention"), "lacks tensors: .*self_attn.*8 in"),
        (lambda name: name.replace("fc1", "fc3") if "bias" in name else name, "lacks .*fc1.bias"),
    ],
)
def test_missing_tensors_of_a_text_encoder_are_found_from_headers(copied, change, reason):
    rename(copied, change)
    with pytest.raises(BaseError, match=reason):
        bases.resolve(str(copied))


def test_misshapen_and_unknown_tensors_of_a_text_encoder_are_found(copied):
    file = copied / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("final_layer_norm.bias"))
    save_file(tensors | {name: torch.zeros(3)}, file)
    with pytest.raises(BaseError, match=r"misshapen tensors: final_layer_norm\.bias"):
        bases.resolve(str(copied))
    save_file(tensors | {f"{name}_more": torch.zeros(3)}, file)
    with pytest.raises(BaseError, match=r"unknown tensors: .*_more"):
        bases.resolve(str(copied))


@pytest.mark.parametrize(
    ("part", "values", "reason"),
    [
        ("unet", {"class_embed_type": "projection"}, "class_embed_type"),  # unCLIP
        ("unet", {"time_cond_proj_dim": 256}, "time_cond_proj_dim"),  # LCM
        ("unet", {"num_class_embeds": 10}, "num_class_embeds"),
        ("unet", {"encoder_hid_dim": 32}, "encoder_hid_dim"),
        ("unet", {"out_channels": 8}, "out_channels of its UNet is 8"),
        ("unet", {"cross_attention_dim": 768}, "texts are 16 wide"),
        ("text_encoder", {"use_attention_mask": True}, "attention mask"),
        ("tokenizer", {"model_max_length": 10**30}, "set model_max_length to 16"),
        ("tokenizer", {"model_max_length": None}, "set model_max_length to 16"),
        ("tokenizer", {"model_max_length": 77}, "set model_max_length to 16"),
    ],
)
def test_unsupported_inputs_of_the_unet_are_rejected(copied, part, values, reason):
    change(copied, part, **values)
    with pytest.raises(BaseError, match=reason):
        bases.resolve(str(copied))


def test_an_unknown_pipeline_class_lists_the_known_ones(copied):
    file = copied / "model_index.json"
    index = json.loads(file.read_text()) | {"_class_name": "StableUnCLIPPipeline"}
    file.write_text(json.dumps(index))
    with pytest.raises(BaseError, match=r"'StableUnCLIPPipeline'.*StableDiffusionPipeline"):
        bases.resolve(str(copied))
