"""Fixtures: a tiny random base in the diffusers layout, and one Ray for the whole session."""

from __future__ import annotations

import json
import os
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from s3_kit import S3Handler

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the slow tests")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        skip = pytest.mark.skip(reason="slow; run with --slow")
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory) -> Path:
    """A randomly initialised Stable Diffusion of 32 px and about 100,000 parameters."""
    return build_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


def build_tiny_base(folder: Path, prediction_type: str = "epsilon") -> Path:
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    vocabulary_size = write_tokenizer(folder / "tokenizer")
    UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, norm_num_groups=8,
        block_out_channels=(16, 32), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=16,
        attention_head_dim=8,
    ).save_pretrained(folder / "unet")  # fmt: skip
    AutoencoderKL(
        sample_size=32, latent_channels=4, layers_per_block=1, norm_num_groups=8,
        block_out_channels=(8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, scaling_factor=0.5,
    ).save_pretrained(folder / "vae")  # fmt: skip
    CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary_size, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=16, projection_dim=16,
            bos_token_id=vocabulary_size - 2, eos_token_id=vocabulary_size - 1,
            pad_token_id=vocabulary_size - 1,
        )
    ).save_pretrained(folder / "text_encoder")  # fmt: skip
    DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
        prediction_type=prediction_type,
    ).save_pretrained(folder / "scheduler")  # fmt: skip
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def write_tokenizer(folder: Path) -> int:
    """Write a CLIP BPE tokenizer with words of prompts and 400 rare two-letter tokens."""
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    vocabulary = {token: i for i, token in enumerate([*letters, *(c + "</w>" for c in letters)])}
    merges = []

    def merge(left: str, right: str) -> None:
        if left + right not in vocabulary:
            merges.append(f"{left} {right}")
            vocabulary[left + right] = len(vocabulary)

    for first in "zxqvjkwbfg":
        for second in "bcdfghjklmnpqrstvwxz0123456789":
            merge(first, second + "</w>")
    for word in ("photo", "of", "dog", "cat", "in", "the", "on", "beach", "clock"):
        left = word[0]
        for index, letter in enumerate(word[1:], start=1):
            last = index == len(word) - 1
            merge(left, letter + ("</w>" if last else ""))
            left += letter
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    config = {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": 16, "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(vocabulary)


@pytest.fixture(scope="session")
def ray_session():
    """One local Ray for all tests that need one; 8 logical CPUs, so that nothing waits."""
    import ray

    ray.init(
        address="local",
        num_cpus=8,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=200 * 2**20,
        logging_level="error",
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def s3_server():
    handler = type("Handler", (S3Handler,), {"objects": {}, "uploads": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server, handler.objects
    server.shutdown()


@pytest.fixture
def s3_uri(s3_server):
    server, objects = s3_server
    objects.clear()
    options = f"endpoint_override=127.0.0.1:{server.server_port}&scheme=http&region=eu-west-1"
    return f"s3://someone:verysecret@bucket/team/runs?{options}"
