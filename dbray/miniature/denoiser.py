"""The fourth stage: the UNet and the text encoder, trained together on cached latents.

Owns the loss, the batches and the loading of this stage. Epsilon prediction with min-SNR weights
(Hang et al. 2023, arXiv 2303.09556); one caption in ten is dropped for classifier-free guidance.
Captions that name an accessory are drawn more often, and its place has a higher weight: glasses
cover a few hundredths of a picture, so the plain loss learns them last. Only where they are named:
otherwise "a dog" would come to mean a dog with a hat.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor

from dbray.bases.schedule import NoiseSchedule
from dbray.miniature import data, networks
from dbray.miniature.autoencoder import autocast
from dbray.miniature.data import Rows
from dbray.miniature.training import Average, Run, Trainer, load_checkpoint
from dbray.miniature.vocabulary import write_tokenizer

CAPTION_DROPOUT = 0.1
SNR_GAMMA = 5.0
NAMING_WORD = "wearing"
NAMED_SHARE = 0.4
NAMED_WEIGHT = 5.0


@dataclass(frozen=True, slots=True)
class Wordings:
    """Tokenized captions of the cached scenes, several wordings of each.

    `ids` is wordings x TEXT_LENGTH, ordered by scene; `names_accessory` marks those that name an
    accessory, and `naming` lists them; `blank` is the empty caption.
    """

    ids: np.ndarray
    names_accessory: np.ndarray
    naming: np.ndarray
    blank: np.ndarray
    vocabulary_size: int

    def draw(
        self, rng: np.random.Generator, batch_size: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return scenes, their words (batch x TEXT_LENGTH), and which of them name an accessory.

        Only uniformly drawn scenes get empty captions, because guidance leads away from those.
        """
        rows = rng.integers(len(self.ids), size=batch_size)
        chosen = rng.random(batch_size) < (NAMED_SHARE if len(self.naming) else 0.0)
        rows[chosen] = self.naming[rng.integers(len(self.naming) or 1, size=int(chosen.sum()))]
        words = self.ids[rows].astype(np.int64)
        dropped = ~chosen & (rng.random(batch_size) < CAPTION_DROPOUT)
        words[dropped] = self.blank
        return rows // data.NUM_CAPTIONS, words, self.names_accessory[rows] & ~dropped


def load_wordings(folder: Path, kind: str = "latents") -> Wordings:
    """Tokenize the captions of every scene whose latents, or another kind, are cached."""
    from transformers import CLIPTokenizer

    path = folder / "tokenizer"
    if not (path / "vocab.json").exists():
        write_tokenizer(path)
    tokenizer: Any = CLIPTokenizer.from_pretrained(path, local_files_only=True)
    num_shards = len(data.shards(folder / "cache", kind))
    captions = data.load_captions(folder / "cache", num_shards)
    flat = [wording for wordings in captions for wording in wordings]
    unique = sorted(set(flat))
    length = networks.TEXT_LENGTH
    rows = tokenizer(["", *unique], padding="max_length", truncation=True, max_length=length)
    table = np.asarray(rows["input_ids"], dtype=np.uint16)
    index = {wording: row + 1 for row, wording in enumerate(unique)}
    ids = table[np.asarray([index[wording] for wording in flat])]
    names_accessory = np.asarray([NAMING_WORD in wording for wording in flat])
    naming = np.flatnonzero(names_accessory)
    return Wordings(ids, names_accessory, naming, table[0], len(tokenizer))


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
    latents = Rows(data.load_arrays(run.folder / "cache", "latents"))
    details = Rows(data.load_arrays(run.folder / "cache", "details"))
    scale = scaling_factor(latents)
    schedule = NoiseSchedule(networks.build_scheduler().alphas_cumprod.to(run.device), "epsilon")
    while trainer.going():
        rng = trainer.generator()
        torch.manual_seed(int(rng.integers(1 << 62)))
        rows, words, names = wordings.draw(rng, run.batch_size)
        clean = torch.from_numpy(latents.take(rows)).to(run.device).float() * scale
        drawn = rng.integers(schedule.num_timesteps, size=len(rows))
        timesteps = torch.from_numpy(drawn).to(run.device)
        noise = torch.randn_like(clean)
        noisy = schedule.add_noise(clean, noise, timesteps)
        with autocast(run.device):
            states = text_encoder(torch.from_numpy(words).to(run.device)).last_hidden_state
            predicted = unet(noisy, timesteps, states).sample
        named = details.take(rows) & names[:, None, None]
        # It decays: what has more weight is predicted more, and a dog that may look left or right
        # would wear a hat at both ends.
        more = (NAMED_WEIGHT - 1.0) * (1.0 - trainer.progress.fraction) ** 3
        importance = torch.from_numpy(1.0 + more * named)
        errors = (predicted.float() - noise).square().mean(dim=1)
        weighted = (errors * importance.to(run.device, torch.float32)).mean(dim=(1, 2))
        weights = schedule.min_snr_weights(timesteps, SNR_GAMMA)
        plain = float(errors.detach().mean())
        trainer.step((weighted * weights).mean(), len(rows), plain=plain)
    if run.peers.leads:
        trainer.save()


def scaling_factor(latents: Rows) -> float:
    """Return the factor that scales latents to unit deviation."""
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
