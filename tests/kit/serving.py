"""Fixtures of the serving tests: a registry of perturbed models, and one shared real Ray Serve."""

from __future__ import annotations

import hashlib
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from dbray import bases
from dbray.records import previews
from dbray.records.models import ModelRecord
from dbray.storage.store import Store
from dbray.subjects.images import encode_png, encode_webp
from kit import records

_clock = iter(range(10**6))


def perturbed(base_folder: Path, seed: int, scale: float = 0.05) -> bytes:
    """Return the base's UNet with noise added: a model with other outputs."""
    [file] = (base_folder / "unet").glob("*.safetensors")
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: (value + scale * torch.randn(value.shape, generator=generator)).half()
        for name, value in safetensors.torch.load_file(file).items()
    }
    return safetensors.torch.save(tensors)


def publish(storage: Path | str, base_folder: Path, model_id: str, seed: int = 0, **fields):
    """Publish a perturbed model; a later one with the same id is its newest revision."""
    base = bases.resolve(str(base_folder))
    fingerprint = hashlib.sha256(f"{model_id} {seed}".encode()).hexdigest()
    created = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=next(_clock))
    weights = fields.pop("weights", None) or perturbed(base_folder, seed)
    usual = {
        "fingerprint": fingerprint, "base": str(base_folder), "base_digest": base.digest,
        "seed": seed, "created_at": created.isoformat(), "steps": 7,
    }  # fmt: skip
    return records.publish(storage, records.record(model_id, **(usual | fields)), weights)


def add_previews(storage: Path | str, record: ModelRecord) -> None:
    """Publish two flat previews and two photographs."""
    flat = {colour: np.full((32, 32, 3), colour, np.uint8) for colour in (60, 120, 180, 240)}
    files = {
        "0.png": encode_png(flat[60]), "base-0.png": encode_png(flat[120]),
        "photo-0.webp": encode_webp(flat[180]), "photo-1.webp": encode_webp(flat[240]),
        "previews.json": b'{"prompts": ["a photo of {subject} on the beach"], "seed": 0}',
    }  # fmt: skip
    previews.annex(Store(str(storage)), record.name).publish(files)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Site:
    """A running server: its address and its registry."""

    def __init__(self, url: str, storage: Path, base: Path):
        self.url, self.storage, self.base = url, storage, base

    def publish(self, model_id: str, seed: int = 0, **fields) -> ModelRecord:
        return publish(self.storage, self.base, model_id, seed, **fields)

    def figures(self) -> list[dict]:
        """Return the state of every replica."""
        from ray import serve

        handle = serve.get_deployment_handle("Model", "dbray")
        results = handle.broadcast("figures").results(timeout_s=30, return_exceptions=True)
        return [result for result in results if isinstance(result, dict)]
