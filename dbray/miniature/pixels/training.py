"""The two stages of the cascade that train: the first with its text encoder, then the second.

Owns their batches. As DeepFloyd IF draws: texts are padded to 77 tokens, all of which the UNets
attend to; super-resolution sees the small picture enlarged and with noise, and is told how much.
Its noise is mostly little, where the detail of a subject survives; it is also trained with much, so
that it improves what the first stage draws badly.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import AttnAddedKVProcessor
from torch import Tensor
from torch.nn import functional

from dbray.bases.schedule import NoiseSchedule
from dbray.miniature import data
from dbray.miniature.autoencoder import autocast, to_images
from dbray.miniature.data import Rows
from dbray.miniature.pixels import networks
from dbray.miniature.pixels.data import KIND, load_captions, small_images
from dbray.miniature.pixels.losses import VARIANCE_WEIGHT, Variances, spread_timesteps
from dbray.miniature.pixels.tokens import load_tokenizer, write_tokenizer
from dbray.miniature.training import Average, Run, Trainer, load_checkpoint

CAPTION_DROPOUT = 0.1
FIRST_GAMMA, SUPER_RESOLUTION_GAMMA = 5.0, 20.0
"""Of min-SNR weights; fine detail is settled at less noise than a composition."""

LOW_LEVEL, HIGH_LEVEL = 50, 300
"""Half of the small pictures have a noise level below the first, the others below the second."""

TOKENIZER = "t5-tokenizer"
"""The folder of the tokenizer beside the checkpoints."""


@dataclass(frozen=True, slots=True)
class Texts:
    """Tokenized captions, NUM_CAPTIONS of each scene; the first row of `table` is no caption."""

    table: np.ndarray
    rows: np.ndarray
    vocabulary_size: int

    def draw(self, rng: np.random.Generator, batch_size: int) -> tuple[np.ndarray, Tensor]:
        """Return scenes, and the token ids of a caption of each, some of which are empty."""
        wordings = rng.integers(len(self.rows), size=batch_size)
        rows = np.where(rng.random(batch_size) < CAPTION_DROPOUT, 0, self.rows[wordings])
        return wordings // data.NUM_CAPTIONS, torch.from_numpy(self.table[rows].astype(np.int64))


def load_texts(folder: Path) -> Texts:
    """Tokenize the captions of every rendered scene; the tokenizer is made if it is missing."""
    if not (folder / TOKENIZER / "tokenizer.json").exists():
        write_tokenizer(folder / TOKENIZER, networks.TEXT_LENGTH)
    tokenizer = load_tokenizer(folder / TOKENIZER)
    captions = load_captions(folder / "cache", len(data.shards(folder / "cache", KIND)))
    unique = sorted(set(captions))
    index = {caption: row + 1 for row, caption in enumerate(unique)}
    encoded = tokenizer(
        ["", *unique], padding="max_length", truncation=True, max_length=networks.TEXT_LENGTH
    )
    table = np.asarray(encoded["input_ids"], dtype=np.uint16)
    return Texts(table, np.asarray([index[caption] for caption in captions]), len(tokenizer))


def encode(text_encoder: Any, ids: Tensor) -> Tensor:
    """Encode token ids as the pipelines do: padding is masked inside the encoder, and kept."""
    return text_encoder(ids, attention_mask=(ids != 0).long()).last_hidden_state


def train_first(run: Run) -> None:
    """Train the first stage's UNet and the text encoder together."""
    texts = load_texts(run.folder)
    torch.manual_seed(run.seed)
    unet = _prepared(networks.build_first(), run)
    text_encoder = networks.build_text_encoder(texts.vocabulary_size).to(run.device)
    batches = _Batches(run, texts, FIRST_GAMMA)
    trainer = _begin(run, "first", [*unet.parameters(), *text_encoder.parameters()])
    while trainer.going():
        rng = trainer.generator()
        large, ids = batches.draw(rng)
        clean = small_images(large)
        timesteps, noise = batches.noise(rng, clean)
        noisy = batches.schedule.add_noise(clean, noise, timesteps)
        with autocast(run.device):
            predicted = unet(noisy, timesteps, encode(text_encoder, ids)).sample
        loss, plain = batches.loss(predicted.float(), noise, timesteps)
        trainer.step(loss, len(clean), plain=float(plain))
    if run.peers.leads:
        trainer.save()


def train_super_resolution(run: Run) -> None:
    """Train the second stage's UNet with the first stage's text encoder, which stays as it is."""
    texts = load_texts(run.folder)
    text_encoder = load_first(run.folder, texts.vocabulary_size)[1].to(run.device)
    torch.manual_seed(run.seed)
    unet = _prepared(networks.build_super_resolution(), run)
    batches = _Batches(run, texts, SUPER_RESOLUTION_GAMMA)
    noising = networks.build_image_noising_scheduler()
    trainer = _begin(run, "super-resolution", list(unet.parameters()))
    while trainer.going():
        rng = trainer.generator()
        clean, ids = batches.draw(rng)
        timesteps, noise = batches.noise(rng, clean)
        levels = torch.from_numpy(draw_levels(rng, len(clean))).to(run.device)
        enlarged = enlarge(small_images(clean))
        condition = noising.add_noise(enlarged, torch.randn_like(enlarged), levels)
        noisy = batches.schedule.add_noise(clean, noise, timesteps)
        with autocast(run.device):
            with torch.no_grad():
                states = encode(text_encoder, ids)
            inputs = torch.cat([noisy, condition], dim=1)
            predicted = unet(inputs, timesteps, states, class_labels=levels).sample
        loss, plain = batches.loss(predicted.float(), noise, timesteps)
        trainer.step(loss, len(clean), plain=float(plain))
    if run.peers.leads:
        trainer.save()


def draw_levels(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draw noise levels of small pictures, half of them low."""
    highest = np.where(rng.random(count) < 0.5, LOW_LEVEL, HIGH_LEVEL)
    return (rng.random(count) * highest).astype(np.int64)


def enlarge(small: Tensor) -> Tensor:
    """Enlarge small pictures as `IFSuperResolutionPipeline` does."""
    size = (networks.LARGE, networks.LARGE)
    return functional.interpolate(small, size, mode="bilinear", align_corners=True)


class _Batches:
    """What both stages draw and compare."""

    def __init__(self, run: Run, texts: Texts, gamma: float) -> None:
        scheduler = networks.build_scheduler()
        self.run, self.texts, self.gamma = run, texts, gamma
        self.images = Rows(data.load_arrays(run.folder / "cache", KIND))
        self.schedule = NoiseSchedule(scheduler.alphas_cumprod.to(run.device), "epsilon")
        self.variances = Variances.of(scheduler, run.device)

    def draw(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return large pictures and the token ids of their captions."""
        scenes, ids = self.texts.draw(rng, self.run.batch_size)
        return to_images(self.images.take(scenes), self.run.device), ids.to(self.run.device)

    def noise(self, rng: np.random.Generator, clean: Tensor) -> tuple[Tensor, Tensor]:
        """Return timesteps and noise; all that torch draws in this step follows from `rng`."""
        torch.manual_seed(int(rng.integers(1 << 62)))
        drawn = spread_timesteps(rng, len(clean), self.schedule.num_timesteps)
        return torch.from_numpy(drawn).to(clean.device), torch.randn_like(clean)

    def loss(self, predicted: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss, and the plain squared error of the noise without gradients."""
        found, logits = predicted.chunk(2, dim=1)
        errors = (found - noise).square().mean(dim=(1, 2, 3))
        weights = self.schedule.min_snr_weights(timesteps, self.gamma)
        bound = self.variances.bound(logits, found - noise, timesteps)
        return (weights * errors + VARIANCE_WEIGHT * bound).mean(), errors.detach().mean()


def _prepared(unet: Any, run: Run) -> Any:
    if run.device.type == "cpu":
        # torch's fused attention is slower than plain products in bfloat16 on a CPU
        unet.set_attn_processor(AttnAddedKVProcessor())
    return unet.to(run.device)


def _begin(run: Run, stage: str, parameters: list[torch.nn.Parameter]) -> Trainer:
    # no weight decay: it would shrink the rare tokens, which never get a gradient
    optimiser = torch.optim.AdamW(
        parameters, lr=0.0, betas=(0.9, 0.99), weight_decay=0.0, fused=True
    )
    trainer = Trainer(run, stage, parameters, optimiser, peak=1e-3)
    trainer.average.decay = 0.99
    trainer.restore()
    return trainer


def load_first(folder: Path, vocabulary_size: int) -> tuple[Any, Any]:
    """Return the averaged UNet and text encoder of the first stage's checkpoint."""
    unet, text_encoder = networks.build_first(), networks.build_text_encoder(vocabulary_size)
    _load_average(folder, "first", [*unet.parameters(), *text_encoder.parameters()])
    return unet.eval(), text_encoder.eval()


def load_super_resolution(folder: Path) -> Any:
    """Return the averaged UNet of the second stage's checkpoint."""
    unet = networks.build_super_resolution()
    _load_average(folder, "super-resolution", list(unet.parameters()))
    return unet.eval()


def _load_average(folder: Path, stage: str, parameters: list[torch.nn.Parameter]) -> None:
    state = load_checkpoint(folder / f"{stage}.pt")
    if state is None:
        raise FileNotFoundError(f"no checkpoint of {stage} in {folder}: run the stage `{stage}`")
    average = Average(parameters)
    average.values = state["average"]
    average.copy_to(parameters)
