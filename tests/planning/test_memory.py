"""The memory that a job needs, by hand, for bases of real size of which there are only configs."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import yaml
from kit.families import FAMILIES
from kit.worlds import write_job

from dbray import hardware
from dbray.bases.families.stable_diffusion import StableDiffusion
from dbray.cli import main
from dbray.hardware import Hardware
from dbray.spec.recipe import Recipe

GB = 10**9
REAL = {
    "flux": {
        "transformer": {"num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128,
                        "num_attention_heads": 24, "joint_attention_dim": 4096,
                        "pooled_projection_dim": 768, "in_channels": 64,
                        "axes_dims_rope": [16, 56, 56]},
        "vae": {"block_out_channels": [128, 256, 512, 512], "latent_channels": 16,
                "down_block_types": ["DownEncoderBlock2D"] * 4,
                "up_block_types": ["UpDecoderBlock2D"] * 4},
        "text_encoder_2": {"d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64,
                           "num_layers": 24, "vocab_size": 32128},
    },
    "qwen_image": {
        "transformer": {"num_layers": 60, "attention_head_dim": 128, "num_attention_heads": 24,
                        "joint_attention_dim": 3584, "in_channels": 64, "out_channels": 16,
                        "axes_dims_rope": [16, 56, 56]},
        "vae": {"base_dim": 96, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "z_dim": 16,
                "temperal_downsample": [False, True, True],
                "latents_mean": [0.0] * 16, "latents_std": [1.0] * 16},
    },
}  # fmt: skip
"""What the published configurations have instead of the tiny ones."""
FLUX, QWEN = 11_901_408_320, 20_430_401_088
"""Parameters of the published transformers."""
T5 = 4_762_310_656
BLOCK = (4096 + 512) * 3072
"""Tokens of an image of 1024 px and of a text, times the channels of both transformers."""


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """Folders with configurations of real size and tokenizers, without any weights."""
    found = {}
    for name, parts in REAL.items():
        folder = FAMILIES[name].build(tmp_path_factory.mktemp(name) / "base")
        for weights in folder.rglob("*.safetensors"):
            weights.unlink()
        for part, real in parts.items():
            file = folder / part / "config.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | real))
        found[name] = folder
    return found


@pytest.fixture
def plan(tmp_path, configs, capsys, monkeypatch):
    """What `dbray plan --json` prints on a machine with some GPUs."""

    def plan(name: str, gpus: int, gigabytes: int, recipe: dict, **resources):
        machine = Hardware(num_cpus=64, num_gpus=gpus, memory_bytes=gigabytes * GB)
        monkeypatch.setattr(hardware.Hardware, "local", lambda: machine)
        recipe = {"precision": "bf16", "resolution": 1024, **recipe}
        file = write_job(tmp_path, configs[name], {"rex": "dog"}, recipe=recipe,
                         resources=resources)  # fmt: skip
        # Named by hand: the tiny vocabularies have no rare tokens.
        images = [f"photos/rex/{number}.png" for number in range(3)]
        rex = {"id": "rex", "class_noun": "dog", "identifier": "zb", "images": images}
        file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "subjects": [rex]}))
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        assert main(["plan", str(file), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return plan


def test_an_adapter_of_flux_by_hand(plan):
    found = plan("flux", 1, 40, {"method": "lora", "gradient_checkpointing": True})
    # Four and four projections, and two feed-forwards, in each double block; three in each single.
    double = 8 * 16 * (3072 + 3072) + 4 * 16 * (3072 + 12288)
    factors = 19 * double + 38 * 3 * 16 * (3072 + 3072)
    by_hand = {
        "parameters": 6 * factors,  # float32 and, in a step, bfloat16
        "frozen": 2 * FLUX,
        "gradients": 4 * factors,
        "optimiser": 8 * factors,
        "ema": 0,
        "working": 2 * T5,  # more than the activations of 57 blocks that are computed again
    }
    assert found["memory_bytes"] == pytest.approx(by_hand, rel=0.1)
    assert found["proposed_resources"]["zero_stage"] == 0  # 34 GB: it fits
    assert not [one for one in found["warnings"] if one["where"] == "memory"]


def test_flux_as_a_whole_by_hand(plan):
    recipe = {"method": "full", "gradient_checkpointing": True}
    found = plan("flux", 8, 80, recipe, gpus_per_subject=8, zero_stage=1)
    by_hand = {
        "parameters": 2 * FLUX,
        "frozen": 0,
        "gradients": 2 * FLUX + 4 * FLUX / 8,
        "optimiser": 12 * FLUX / 8,  # a master and two moments
        "ema": 0,
        "working": 2 * T5,
    }
    assert found["memory_bytes"] == pytest.approx(by_hand, rel=0.1)
    [warning] = [one for one in found["warnings"] if one["where"] == "memory"]
    assert warning["fix"] == "set in resources zero_stage: 2"  # 60 GB instead of 81


def test_flux_as_a_whole_on_one_gpu_is_offloaded(plan):
    recipe = {"method": "full", "gradient_checkpointing": True}
    found = plan("flux", 1, 80, recipe)
    [warning] = [one for one in found["warnings"] if one["where"] == "memory"]
    assert warning["fix"] == "set in resources zero_stage: 1, offload: optimiser"


def test_qwen_image_by_hand(plan):
    recipe = {"method": "full", "gradient_checkpointing": True}
    found = plan("qwen_image", 8, 80, recipe, gpus_per_subject=8, zero_stage=3)
    by_hand = {
        "parameters": 2 * QWEN / 8,
        "frozen": 0,
        "gradients": 6 * QWEN / 8,
        "optimiser": 12 * QWEN / 8,
        "ema": 0,
        "working": 2 * BLOCK * (60 + 42),  # one row of bfloat16: an input of each block, and one
    }
    assert found["memory_bytes"] == pytest.approx(by_hand, rel=0.1)
    assert found["proposed_resources"]["zero_stage"] == 3


def test_an_adapter_of_qwen_image_is_shared_out_where_one_gpu_cannot_hold_the_base(plan):
    recipe = {"method": "lora", "gradient_checkpointing": True}
    found = plan("qwen_image", 4, 26, recipe)
    [warning] = [one for one in found["warnings"] if one["where"] == "memory"]
    assert warning["fix"] == "set in resources gpus_per_subject: 2, zero_stage: 3"


def test_a_pack_of_twice_the_slots_needs_twice_the_activations_and_factors(plan):
    recipe = {"method": "lora", "gradient_checkpointing": False}
    small, large = (plan("flux", 1, 1000, recipe, pack=pack)["memory_bytes"] for pack in (2, 4))
    for kind in ("parameters", "gradients", "optimiser", "working"):
        assert large[kind] == 2 * small[kind]
    assert large["frozen"] == small["frozen"]


def test_a_pack_that_does_not_fit_is_made_smaller(plan):
    recipe = {"method": "lora", "gradient_checkpointing": False}
    needed = sum(plan("flux", 1, 1000, recipe, pack=2)["memory_bytes"].values())
    found = plan("flux", 1, needed // 10**9 + 1, recipe, pack=16)
    [warning] = [one for one in found["warnings"] if one["where"] == "memory"]
    assert warning["fix"] == "set in resources pack: 2"


def test_where_nothing_suffices_the_recipe_is_to_change(plan):
    found = plan("qwen_image", 1, 8, {"method": "full"})
    assert found["proposed_resources"] is None
    [warning] = [one for one in found["warnings"] if one["where"] == "memory"]
    assert "recipe.method to lora" in warning["fix"]


def test_configurations_alone_can_be_planned_and_not_run(plan, tmp_path, capsys):
    found = plan("flux", 1, 80, {"method": "lora"})
    assert "planned, not run" in " ".join(one["what"] for one in found["warnings"])
    assert main(["validate", str(tmp_path / "job.yaml")]) == 2
    assert "diffusion_pytorch_model.safetensors" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "wanted"), [
    ("sd15", 2.96e9),
    ("sdxl", 22.1e9),
])  # fmt: skip
def test_activations_of_unets_are_what_their_backward_passes_keep(name, wanted):
    """Wanted was counted by saved_tensors_hooks, in float32, for one row of the native size."""
    common = {"layers_per_block": 2, "sample_size": 64}
    configs = {
        "sd15": {**common, "block_out_channels": (320, 640, 1280, 1280),
                 "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
                 "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3},
        "sdxl": {**common, "block_out_channels": (320, 640, 1280),
                 "transformer_layers_per_block": [1, 2, 10], "sample_size": 128,
                 "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
                 "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",)},
    }  # fmt: skip
    parts = {
        "unet": configs[name],
        "vae": {"block_out_channels": (128, 256, 512, 512), "latent_channels": 4},
    }
    layout = SimpleNamespace(config=parts.__getitem__, autoencoder=parts["vae"])
    recipe = Recipe(resolution=8 * configs[name]["sample_size"])
    assert 4 * StableDiffusion().kept_values(layout, recipe) == pytest.approx(wanted, rel=0.1)


def test_buckets_cannot_be_shared_by_gpus_so_none_are_proposed(plan):
    recipe = {"method": "lora", "gradient_checkpointing": True, "crop": "bucket"}
    assert plan("qwen_image", 4, 26, recipe)["proposed_resources"] is None
