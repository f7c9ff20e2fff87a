"""The third stage: the UNet and the text encoder, trained together on cached latents.

Owns the loss, the batches and the loading of this stage. Epsilon prediction with min-SNR weights
(Hang et al. 2023, arXiv 2303.09556); one caption in ten is dropped for classifier-free guidance.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor

from dbray.miniature import data, networks
from dbray.miniature.autoencoder import autocast
from dbray.miniature.data import Rows
from dbray.miniature.training import Average, Run, Trainer, load_checkpoint

CAPTION_DROPOUT = 0.1
SNR_GAMMA = 5.0


def min_snr_weights(alphas_cumprod: torch.Tensor) -> torch.Tensor:
    """Return min(SNR, gamma) / SNR for every timestep (epsilon prediction)."""
    snr = alphas_cumprod / (1.0 - alphas_cumprod)
    return torch.clamp(snr, max=SNR_GAMMA) / snr


def train_unet(run: Run, token_ids: np.ndarray, blank: np.ndarray, vocabulary_size: int) -> None:
    """Train the UNet and the text encoder on cached latents.

    Args:
        run: where, until when, with whom.
        token_ids: scenes x wordings x TEXT_LENGTH.
        blank: the tokens of the empty caption.
        vocabulary_size: rows of the token embedding.
    """
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
        rows = rng.integers(len(latents), size=run.batch_size)
        clean = torch.from_numpy(latents.take(rows)).to(run.device).float() * scale
        words = token_ids[rows, rng.integers(token_ids.shape[1], size=len(rows))].astype(np.int64)
        words[rng.random(len(rows)) < CAPTION_DROPOUT] = blank
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
