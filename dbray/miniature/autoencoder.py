"""The first stages: the autoencoder, its latents, and the decoder that is refined afterwards.

Owns everything between pixels and latents. The encoder is frozen once latents are cached, because
the UNet is trained on them; the decoder can be refined at any time, during or after the UNet.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dbray.miniature import data, networks
from dbray.miniature.data import Rows
from dbray.miniature.training import Average, Run, Trainer, load_checkpoint, save_checkpoint

logger = logging.getLogger(__name__)

KL_WEIGHT = 3e-4
SILENT_LOGVAR = -8.0
LOG_WEIGHT = 0.01  # makes the gradient's norm that of a squared error


def to_images(pixels: np.ndarray, device: torch.device) -> torch.Tensor:
    """uint8 B, H, W, C -> float B, C, H, W in [-1, 1]."""
    tensor = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2)
    return tensor.float().div_(127.5).sub_(1.0).contiguous()


def autocast(device: torch.device) -> torch.autocast:
    """Return autocast to bfloat16, for convolutions and matrix products where it is faster."""
    return torch.autocast(device.type, torch.bfloat16)


def train_autoencoder(run: Run) -> None:
    """Train the autoencoder on renders and, one image in four, on textures."""
    if data.shards(run.folder / "cache", "latents"):
        logger.info("vae skipped=latents_are_cached")
        return
    torch.manual_seed(run.seed)
    model = networks.build_autoencoder().to(run.device)
    trainer = Trainer.begin(run, "vae", list(model.parameters()), peak=2e-3)
    batches = _Batches(run, renders_to_one_texture=3)
    while trainer.going():
        images = batches.draw(trainer.generator())
        with autocast(run.device):
            posterior = model.encode(images).latent_dist
            decoded = model.decode(posterior.sample()).sample
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        error = decoded.float() - images
        loss = error.square().mean() + 0.1 * error.abs().mean()
        psnr = _psnr(error.square().mean(dim=(1, 2, 3))[: batches.num_renders])
        trainer.step(
            loss + KL_WEIGHT * divergence,
            len(images),
            psnr=psnr,
            divergence=float(divergence.detach()),
        )
    if run.peers.leads:
        trainer.save()
        _finish(run.folder)


def refine_decoder(run: Run) -> None:
    """Train only the decoder, on outputs of the frozen encoder."""
    torch.manual_seed(run.seed)
    model = load_autoencoder(run.folder, run.device)
    parameters = _decoder_parameters(model)
    for parameter in parameters:
        parameter.requires_grad_(True)
    trainer = Trainer.begin(run, "decoder", parameters, peak=1e-3)
    batches = _Batches(run, renders_to_one_texture=7)
    while trainer.going():
        images = batches.draw(trainer.generator())
        with autocast(run.device):
            with torch.no_grad():
                latents = model.encode(images).latent_dist.sample()
            decoded = model.decode(latents).sample
        squares = (decoded.float() - images).square().mean(dim=(1, 2, 3))
        # The logarithm weighs a plain picture as much as a detailed one, as PSNR does.
        loss = LOG_WEIGHT * (squares + 1e-5).log().mean()
        trainer.step(loss, len(images), psnr=_psnr(squares[: batches.num_renders]))
    if run.peers.leads:
        trainer.save()


class _Batches:
    """Batches of renders followed by textures, in a fixed ratio."""

    def __init__(self, run: Run, renders_to_one_texture: int) -> None:
        self.run = run
        self.num_textures = max(1, run.batch_size // (renders_to_one_texture + 1))
        self.num_renders = run.batch_size - self.num_textures
        self.renders = Rows(data.load_arrays(run.folder / "cache", "scenes"))
        self.textures = Rows(data.load_arrays(run.folder / "cache", "textures"))

    def draw(self, rng: np.random.Generator) -> torch.Tensor:
        """Return a batch and seed torch for the noise of this step."""
        torch.manual_seed(int(rng.integers(1 << 62)))
        rows = [
            self.renders.take(rng.integers(len(self.renders), size=self.num_renders)),
            self.textures.take(rng.integers(len(self.textures), size=self.num_textures)),
        ]
        return to_images(np.concatenate(rows), self.run.device)


def _psnr(squares: torch.Tensor) -> float:
    """Return the mean PSNR in dB of images, from their mean squared errors in [-1, 1]."""
    return float(-10.0 * torch.log10(squares.detach() / 4.0).mean())


def _decoder_parameters(model: Any) -> list[torch.nn.Parameter]:
    return [*model.decoder.parameters(), *model.post_quant_conv.parameters()]


@torch.no_grad()
def _finish(folder: Path) -> None:
    """Write the averaged autoencoder, with latents of zero mean and unit deviation.

    A pipeline has one scaling factor for all channels, but channels differ by a factor of five;
    so the scales go into the two 1 x 1 convolutions next to the latents, where they are free.
    """
    state = load_checkpoint(folder / "vae.pt")
    if state is None:
        raise FileNotFoundError(f"no autoencoder in {folder}: run the stage `vae` first")
    model = networks.build_autoencoder()
    average = Average(list(model.parameters()))
    average.values = state["average"]
    average.copy_to(model.parameters())
    pixels = data.load_arrays(folder / "cache", "scenes")[0][:2_000]
    moments = []
    for start in range(0, len(pixels), 100):
        images = to_images(np.array(pixels[start : start + 100]), torch.device("cpu"))
        moments.append(model.encode(images).latent_dist.parameters)
    mean, logvar = torch.cat(moments).chunk(2, dim=1)
    _normalise(model, mean, logvar)
    save_checkpoint(folder / "autoencoder.pt", {"model": model.state_dict()})


def _normalise(model: Any, mean: torch.Tensor, logvar: torch.Tensor) -> None:
    """Scale latents to zero mean and unit deviation; zero the channels without information."""
    informative, spread = mean.var(dim=(0, 2, 3)), logvar.exp().mean(dim=(0, 2, 3))
    centre, scale = mean.mean(dim=(0, 2, 3)), (informative + spread).sqrt()
    silent = informative < 0.05 * spread
    silent &= informative < informative.max()  # keeps one channel of an untrained encoder
    before, after = model.quant_conv, model.post_quant_conv
    size = networks.LATENT_CHANNELS
    after.bias += after.weight.flatten(1) @ centre
    after.weight *= scale.view(1, -1, 1, 1)
    before.bias[:size] = (before.bias[:size] - centre) / scale
    before.weight[:size] /= scale.view(-1, 1, 1, 1)
    before.bias[size:] -= 2.0 * scale.log()
    # the decoder has learnt to ignore a collapsed channel; its noise would only slow the UNet down
    after.weight[:, silent] = 0.0
    both = silent.repeat(2)
    before.weight[both] = 0.0
    before.bias[both] = torch.tensor([0.0, SILENT_LOGVAR]).repeat_interleave(size)[both]


def load_autoencoder(folder: Path, device: torch.device) -> Any:
    """Return the finished autoencoder, with its refined decoder if there is one, frozen."""
    state = load_checkpoint(folder / "autoencoder.pt")
    if state is None:
        _finish(folder)
        state = load_checkpoint(folder / "autoencoder.pt")
        assert state is not None
    model = networks.build_autoencoder()
    model.load_state_dict(state["model"])
    refined = load_checkpoint(folder / "decoder.pt")
    if refined is not None:
        for parameter, value in zip(_decoder_parameters(model), refined["average"], strict=True):
            parameter.data.copy_(value)
    return model.to(device).eval().requires_grad_(False)


@torch.no_grad()
def encode_shard(run: Run, model: Any, index: int) -> None:
    """Write the latents' means of one shard as float16, unless they exist."""
    path = run.folder / "cache" / f"latents-{index:04d}.npy"
    if path.exists():
        return
    pixels = np.load(run.folder / "cache" / f"scenes-{index:04d}.npy", mmap_mode="r")
    latents = []
    for start in range(0, len(pixels), 100):
        with autocast(run.device):
            posterior = model.encode(
                to_images(np.array(pixels[start : start + 100]), run.device)
            ).latent_dist
        latents.append(posterior.mean.float().cpu().numpy().astype(np.float16))
    partial = path.with_suffix(".part.npy")
    np.save(partial, np.concatenate(latents))
    partial.rename(path)
