"""The third stage: the UNet and the text encoder, trained together on cached latents.

Owns the loss, the batches and the loading of this stage. Epsilon prediction with min-SNR weights
(Hang et al. 2023, arXiv 2303.09556); one caption in ten is dropped for classifier-free guidance.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor

from dbray.miniature import data, networks
from dbray.miniature.autoencoder import autocast
from dbray.miniature.data import Rows
from dbray.miniature.training import Average, Run, Trainer, load_checkpoint
from dbray.miniature.vocabulary import write_tokenizer

CAPTION_DROPOUT = 0.1
SNR_GAMMA = 5.0
FAVOURED_SHARE = 0.3
FAVOURED_WORD = "wearing"


@dataclass(frozen=True, slots=True)
class Wordings:
    """Tokenized captions of the cached scenes.

    `ids` is scenes x wordings x TEXT_LENGTH, `blank` the empty caption, `favoured` the scenes that
    are drawn more often.
    """

    ids: np.ndarray
    blank: np.ndarray
    vocabulary_size: int
    favoured: np.ndarray


def load_wordings(folder: Path) -> Wordings:
    """Tokenize the captions of every scene whose latents are cached."""
    from transformers import CLIPTokenizer

    path = folder / "tokenizer"
    if not (path / "vocab.json").exists():
        write_tokenizer(path)
    tokenizer: Any = CLIPTokenizer.from_pretrained(path, local_files_only=True)
    num_shards = len(data.shards(folder / "cache", "latents"))
    captions = data.load_captions(folder / "cache", num_shards)
    flat = [wording for wordings in captions for wording in wordings]
    unique = sorted(set(flat))
    length = networks.TEXT_LENGTH
    rows = tokenizer(["", *unique], padding="max_length", truncation=True, max_length=length)
    table = np.asarray(rows["input_ids"], dtype=np.uint16)
    index = {wording: row + 1 for row, wording in enumerate(unique)}
    ids = table[np.asarray([index[wording] for wording in flat])]
    favoured = [row for row, wordings in enumerate(captions) if FAVOURED_WORD in wordings[0]]
    return Wordings(
        ids.reshape(len(captions), -1, length), table[0], len(tokenizer), np.asarray(favoured)
    )


def draw_rows(
    rng: np.random.Generator, favoured: np.ndarray, num_rows: int, batch_size: int
) -> np.ndarray:
    """Draw scenes uniformly, but FAVOURED_SHARE of them from the favoured ones.

    What is small in a picture adds little to the loss and is learnt last.
    """
    rows = rng.integers(num_rows, size=batch_size)
    if len(favoured):
        chosen = rng.random(batch_size) < FAVOURED_SHARE
        rows[chosen] = rng.choice(favoured, size=int(chosen.sum()))
    return rows


def min_snr_weights(alphas_cumprod: torch.Tensor) -> torch.Tensor:
    """Return min(SNR, gamma) / SNR for every timestep (epsilon prediction)."""
    snr = alphas_cumprod / (1.0 - alphas_cumprod)
    return torch.clamp(snr, max=SNR_GAMMA) / snr


def train_unet(run: Run, wordings: Wordings) -> None:
    """Train the UNet and the text encoder on cached latents."""
    vocabulary_size = wordings.vocabulary_size
    torch.manual_seed(run.seed)
    unet = networks.build_unet().to(run.device)
    if run.device.type == "cpu":
        # torch's fused attention is a third slower than plain products in bfloat16 on a CPU
        unet.set_attn_processor(AttnProcessor())
    text_encoder = networks.build_text_encoder(vocabulary_size, vocabulary_size - 1).to(run.device)
    parameters = [*unet.parameters(), *text_encoder.parameters()]
    # no weight decay: it would shrink the rare tokens, which never get a gradient
    optimiser = torch.optim.AdamW(
        parameters, lr=0.0, betas=(0.9, 0.99), weight_decay=0.0, fused=True
    )
    trainer = Trainer(run, "unet", parameters, optimiser, peak=1e-3)
    trainer.restore()
    latents = Rows(data.load_pixels(run.folder / "cache", "latents"))
    scale = scaling_factor(latents)
    alphas = networks.build_scheduler().alphas_cumprod.to(run.device)
    weights = min_snr_weights(alphas)
    while trainer.going():
        rng = trainer.generator()
        torch.manual_seed(int(rng.integers(1 << 62)))
        rows = draw_rows(rng, wordings.favoured, len(latents), run.batch_size)
        clean = torch.from_numpy(latents.take(rows)).to(run.device).float() * scale
        chosen = rng.integers(wordings.ids.shape[1], size=len(rows))
        words = wordings.ids[rows, chosen].astype(np.int64)
        words[rng.random(len(rows)) < CAPTION_DROPOUT] = wordings.blank
        timesteps = torch.from_numpy(rng.integers(1000, size=len(rows))).to(run.device)
        noise = torch.randn_like(clean)
        alpha = alphas[timesteps].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        with autocast(run.device):
            states = text_encoder(torch.from_numpy(words).to(run.device)).last_hidden_state
            predicted = unet(noisy, timesteps, states).sample
        errors = torch.nn.functional.mse_loss(predicted.float(), noise, reduction="none").mean(
            dim=(1, 2, 3)
        )
        trainer.step(
            (errors * weights[timesteps]).mean(), len(rows), plain=float(errors.detach().mean())
        )
    if run.peers.leads:
        trainer.save()


def scaling_factor(latents: Rows) -> float:
    """Return what brings latents to unit deviation."""
    sample = np.random.default_rng(0).integers(len(latents), size=4_000)
    return round(1.0 / float(latents.take(sample).astype(np.float32).std()), 5)


def load_unet(folder: Path, vocabulary_size: int) -> tuple[Any, Any]:
    """Return the averaged UNet and text encoder of the checkpoint."""
    unet = networks.build_unet()
    text_encoder = networks.build_text_encoder(vocabulary_size, vocabulary_size - 1)
    state = load_checkpoint(folder / "unet.pt")
    if state is None:
        raise FileNotFoundError(f"no UNet in {folder}: run the stage `unet` first")
    parameters = [*unet.parameters(), *text_encoder.parameters()]
    average = Average(parameters)
    average.values = state["average"]
    average.copy_to(parameters)
    return unet.eval(), text_encoder.eval()
