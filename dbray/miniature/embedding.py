"""Train the miniature's embedders: a CLIP with both towers, and a ViT that recognises identities.

Owns their losses and batches. Both are trained on renders that are blurred at random, because
the base's images have softer edges than renders.
Sources: Radford et al. 2021 (arXiv 2103.00020) for CLIP; Chen et al. 2020 (arXiv 2002.05709) for
the loss of the ViT, whose two views are two scenes of one identity.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, cross_entropy, normalize

from dbray.miniature import data, networks
from dbray.miniature.autoencoder import autocast, to_images
from dbray.miniature.data import NUM_CAPTIONS, VIEWS, Rows
from dbray.miniature.denoiser import load_wordings
from dbray.miniature.training import Average, Run, Trainer, load_checkpoint

PEAK, WEIGHT_DECAY = 1e-3, 0.05
VIT_SCALE = 10.0
"""Inverse temperature of the ViT's loss."""
NUM_NOUNS = 6
"""Class nouns in a batch of the ViT: few, so that most identities of a batch look alike."""


def train_clip(run: Run) -> None:
    """Train both towers on renders and their captions, with the symmetric loss of CLIP."""
    torch.manual_seed(run.seed)
    wordings = load_wordings(run.folder, "scenes")
    model = networks.build_clip(wordings.vocabulary_size, wordings.vocabulary_size - 1).to(
        run.device
    )
    pixels = Rows(data.load_arrays(run.folder / "cache", "scenes"))
    trainer = Trainer.begin(run, "clip", list(model.parameters()), PEAK, WEIGHT_DECAY)
    while trainer.going():
        rng = trainer.generator()
        rows = rng.integers(len(wordings.ids), size=run.batch_size)
        ids = wordings.ids[rows].astype(np.int64)
        images = soften(to_images(pixels.take(rows // NUM_CAPTIONS), run.device), rng)
        with autocast(run.device):
            found = model(input_ids=torch.from_numpy(ids).to(run.device), pixel_values=images)
        logits = found.logits_per_image.float()
        same = torch.from_numpy((ids[:, None] == ids[None]).all(axis=2)).to(run.device)
        loss = (_contrast(logits, same) + _contrast(logits.T, same)) / 2
        right = (logits.argmax(dim=1) == torch.arange(len(logits), device=run.device)).float()
        trainer.step(loss, len(rows), right=float(right.mean()))
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.6052)  # 100, as in the paper
    if run.peers.leads:
        trainer.save()


def train_vit(run: Run) -> None:
    """Train the ViT to find the other scene of the same identity among similar ones."""
    torch.manual_seed(run.seed)
    model = networks.build_vit().to(run.device)
    groups = Rows(data.load_arrays(run.folder / "cache", "identities"))
    nouns = np.concatenate(data.load_arrays(run.folder / "cache", "nouns"))
    members = [np.flatnonzero(nouns == noun) for noun in np.unique(nouns)]
    trainer = Trainer.begin(run, "vit", list(model.parameters()), PEAK, WEIGHT_DECAY)
    while trainer.going():
        rng = trainer.generator()
        rows = _look_alikes(members, run.batch_size, rng)
        views = np.argsort(rng.random((len(rows), VIEWS)), axis=1)[:, :2]
        pairs = np.take_along_axis(groups.take(rows), views[:, :, None, None, None], axis=1)
        images = soften(to_images(pairs.reshape(-1, *pairs.shape[2:]), run.device), rng)
        with autocast(run.device):
            found = model(pixel_values=images).last_hidden_state[:, 0]
        embeddings = normalize(found.float(), dim=1).view(len(rows), 2, -1)
        logits = VIT_SCALE * embeddings[:, 0] @ embeddings[:, 1].T
        same = torch.eye(len(rows), dtype=torch.bool, device=run.device)
        loss = (_contrast(logits, same) + _contrast(logits.T, same)) / 2
        right = (logits.argmax(dim=1) == torch.arange(len(rows), device=run.device)).float()
        trainer.step(loss, len(images), right=float(right.mean()))
    if run.peers.leads:
        trainer.save()


def _look_alikes(
    members: list[np.ndarray], batch_size: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw identities of a few class nouns; `members` are the identities of each noun."""
    chosen = rng.choice(len(members), size=min(NUM_NOUNS, len(members)), replace=False)
    each = max(1, batch_size // NUM_NOUNS)
    drawn = [rng.permutation(members[noun])[:each] for noun in chosen]
    return np.concatenate(drawn)


def soften(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Blur each of N images (N, C, H, W) in [-1, 1] by a random amount, and add some noise."""
    blurred = avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    shape = (len(images), 1, 1, 1)
    share = torch.from_numpy(rng.random(shape, dtype=np.float32)).to(images.device)
    noise = torch.from_numpy(rng.standard_normal(images.shape, dtype=np.float32)).to(images.device)
    amount = torch.from_numpy(rng.random(shape, dtype=np.float32) * 0.05).to(images.device)
    return images + share * (blurred - images) + amount * noise


def _contrast(logits: Tensor, same: Tensor) -> Tensor:
    """Cross entropy of (B, B) logits to the diagonal; other equal pairs are left out."""
    others = same & ~torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    target = torch.arange(len(logits), device=logits.device)
    return cross_entropy(logits.masked_fill(others, -1e4), target)


def load_averaged(folder: Path, stage: str, model: Any) -> Any:
    """Return the model with the averaged weights of a stage's checkpoint, frozen."""
    state = load_checkpoint(folder / f"{stage}.pt")
    if state is None:
        raise FileNotFoundError(f"no {stage}.pt in {folder}: run the stage `{stage}` first")
    average = Average(list(model.parameters()))
    average.values = state["average"]
    average.copy_to(model.parameters())
    return model.eval().requires_grad_(False)
