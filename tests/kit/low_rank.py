"""Published low-rank models of a tiny base: random factors, and random embeddings of a token."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import safetensors.torch
import torch

from dbray import bases
from dbray.method import lora, tokens
from dbray.method.factors import Factors, to_published
from dbray.records.models import ModelRecord, Registry
from dbray.spec.recipe import Recipe
from dbray.storage.store import Store
from kit import records

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_clock = iter(range(10**6))


def factors(
    base_folder: Path, seed: int, rank: int = 4, targets: tuple[str, ...] = ATTENTION,
    part: str = "unet",
) -> dict[str, Factors]:  # fmt: skip
    """Make factors that visibly change what the base draws."""
    draw = torch.Generator().manual_seed(seed)
    [file] = (base_folder / part).glob("*.safetensors")
    found = {}
    for name, weight in safetensors.torch.load_file(file).items():
        path = name.removesuffix(".weight")
        if path.endswith(targets) and name != path:
            down = torch.randn(rank, *weight.shape[1:], generator=draw)
            up = 0.1 * torch.randn(len(weight), rank, generator=draw)
            shaped = up.view(len(weight), rank, *(1,) * (weight.ndim - 2))
            found[f"{part}.{path}"] = Factors(down, shaped, alpha=2.0 * rank)
    return found


def lora_file(adapter: dict[str, Factors]) -> bytes:
    """Return the published file of factors."""
    return safetensors.torch.save(*to_published(adapter))


def token_file(base_folder: Path, identifier: str, seed: int) -> bytes:
    """Return the published file of random embeddings of an identifier's tokens."""
    ids = tokens.sequences(bases.resolve(str(base_folder)), identifier)["text_encoder"]
    draw = torch.Generator().manual_seed(seed)
    rows = {"text_encoder": torch.randn(len(ids), 16, generator=draw)}
    return safetensors.torch.save(rows, {"token_ids": json.dumps({"text_encoder": ids})})


def publish(
    storage: Path, base_folder: Path, model_id: str, files: dict[str, bytes], **fields: object
) -> ModelRecord:
    """Publish the files of a low-rank model; its method is what they are."""
    kind = ("pivotal" if lora.FILE in files else "textual_inversion") if tokens.FILE in files else (
        "lora"
    )  # fmt: skip
    created = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=next(_clock))
    fingerprint = hashlib.sha256(b"".join((model_id.encode(), *files.values()))).hexdigest()
    usual = {
        "fingerprint": fingerprint, "base": str(base_folder), "files": tuple(files),
        "base_digest": bases.resolve(str(base_folder)).digest, "created_at": created.isoformat(),
        "recipe": Recipe.model_validate({"method": kind}),
    }  # fmt: skip
    record = records.record(model_id, **(usual | fields))
    Registry(Store(str(storage))).publish(record, files)
    return record


def publish_lora(
    storage: Path, base_folder: Path, model_id: str, seed: int, rank: int = 4
) -> ModelRecord:
    """Publish a LoRA with random factors of attention."""
    files = {lora.FILE: lora_file(factors(base_folder, seed, rank))}
    return publish(storage, base_folder, model_id, files)
