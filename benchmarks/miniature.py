"""How good is the miniature? First the judge's own accuracy, then the base's.

Small convolutional classifiers, trained on the world's own renders (seeds that the base never saw),
name the class, place, colour and accessory of an image. Their accuracy on fresh renders is the
ceiling of all other figures: the base's accuracy over prompts with known truth, the autoencoder's
PSNR, latency and loading time.

    python benchmarks/miniature.py [--photographs FOLDER] [--weights FOLDER] [--keep]
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import finish, print_table
from PIL import Image, ImageFilter

from dbray.bases import MINIATURE_FOLDER
from dbray.miniature.autoencoder import to_images
from dbray.miniature.captions import PLACE_PHRASES
from dbray.miniature.world import (
    CLASS_NOUNS,
    COLOURS,
    LIVING,
    PLACE_NAMES,
    Scene,
    random_scene,
    render,
)
from dbray.miniature.world.faces import ACCESSORIES

LABELS: dict[str, tuple[str, ...]] = {
    "class": CLASS_NOUNS,
    "place": PLACE_NAMES,
    "colour": tuple(COLOURS),
    "accessory": ("none", *ACCESSORIES),
}
TARGETS = {"class": 0.95, "place": 0.95, "colour": 0.90, "accessory": 0.80}
IGNORED = -1
CPU = torch.device("cpu")
TRAIN_SEED, FRESH_SEED = 1_000_001, 2_000_002
NUM_TRAIN, NUM_FRESH, NUM_EPOCHS = 40_000, 2_000, 6


class Judge(torch.nn.Module):
    """A five-stage convolutional trunk with one linear head per question."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 96, 128)
        stages: list[torch.nn.Module] = []
        for before, after in itertools.pairwise(widths):
            stages += [
                torch.nn.Conv2d(before, after, 3, stride=2, padding=1),
                torch.nn.BatchNorm2d(after),
                torch.nn.ReLU(),
                torch.nn.Conv2d(after, after, 3, padding=1),
                torch.nn.BatchNorm2d(after),
                torch.nn.ReLU(),
            ]
        self.trunk = torch.nn.Sequential(*stages, torch.nn.Flatten(), torch.nn.Dropout(0.2))
        self.heads = torch.nn.ModuleDict(
            {name: torch.nn.Linear(128 * 16, len(values)) for name, values in LABELS.items()}
        )

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return logits per question for B, 3, 64, 64 images in [-1, 1]."""
        features = self.trunk(images)
        return {name: head(features) for name, head in self.heads.items()}


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt and what its picture must show (None: anything)."""

    text: str
    truth: dict[str, str | None]


def photographed(scene: Scene) -> Scene:
    """Return the scene as a photograph from the front, which the judge is trained on."""
    return replace(scene, style=None, from_behind=False)


def truth_of(scene: Scene) -> list[int]:
    """Return one label per question."""
    values = (
        scene.identity.class_noun,
        scene.place,
        scene.identity.colour,
        scene.accessory or "none",
    )
    return [LABELS[name].index(value) for name, value in zip(LABELS, values, strict=True)]


def draw(seed: int, count: int, *, softened: bool) -> tuple[np.ndarray, np.ndarray]:
    """Render fresh scenes: uint8 images and their labels.

    Half of the training set is softened, because an autoencoder's edges are softer.
    """
    rng = np.random.default_rng(seed)
    pixels = np.empty((count, 64, 64, 3), dtype=np.uint8)
    labels = np.empty((count, len(LABELS)), dtype=np.int64)
    for row in range(count):
        scene = photographed(random_scene(rng))
        image = render(scene)
        if softened and rng.random() < 0.5:
            image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.1))))
        pixels[row], labels[row] = np.asarray(image), truth_of(scene)
    return pixels, labels


def train_judge(path: Path) -> Judge:
    """Return the judge, trained once and kept at `path`."""
    torch.manual_seed(0)
    judge = Judge()
    if path.exists():
        judge.load_state_dict(torch.load(path, weights_only=True))
        return judge.eval()
    pixels, labels = draw(TRAIN_SEED, NUM_TRAIN, softened=True)
    steps = NUM_EPOCHS * (NUM_TRAIN // 64)
    optimiser = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    rng = np.random.default_rng(0)
    for step in range(steps):
        rows = rng.integers(NUM_TRAIN, size=64)
        images = to_images(pixels[rows], CPU)
        images = images + 0.06 * torch.randn_like(images) * float(rng.random())
        answers = judge(images)
        truths = torch.from_numpy(labels[rows])
        loss = torch.stack(
            [
                torch.nn.functional.cross_entropy(answers[name], truths[:, at])
                for at, name in enumerate(LABELS)
            ]
        ).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 250 == 0:
            print(f"judge step {step}/{steps} loss {float(loss.detach()):.3f}", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(judge.state_dict(), path)
    return judge.eval()


@torch.no_grad()
def score(judge: Judge, pixels: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the share of correct answers per question, without ignored labels."""
    answers: dict[str, list[np.ndarray]] = {name: [] for name in LABELS}
    for start in range(0, len(pixels), 250):
        for name, logits in judge(to_images(pixels[start : start + 250], CPU)).items():
            answers[name].append(logits.argmax(dim=1).numpy())
    shares = {}
    for at, name in enumerate(LABELS):
        asked = labels[:, at] != IGNORED
        shares[name] = float((np.concatenate(answers[name]) == labels[:, at])[asked].mean())
    return shares


def make_prompts(count: int, seed: int = 3) -> list[Prompt]:
    """Return prompts with a class, mostly a place, and often a colour or an accessory."""
    rng = np.random.default_rng(seed)
    prompts: list[Prompt] = []
    for index in range(count):
        noun = CLASS_NOUNS[index % len(CLASS_NOUNS)]
        place = str(rng.choice(PLACE_NAMES)) if rng.random() < 0.8 else None
        colour = str(rng.choice(list(COLOURS))) if rng.random() < 0.7 else None
        wearing = noun in LIVING and rng.random() < 0.5
        accessory = str(rng.choice(ACCESSORIES)) if wearing else None
        subject = " ".join(word for word in (colour, noun) if word)
        article = "an" if subject[0] in "aeiou" else "a"
        prefix = "a photo of " if rng.random() < 0.5 else ""
        worn = {None: "", "glasses": " wearing glasses"}.get(accessory, f" wearing a {accessory}")
        where = f" {rng.choice(PLACE_PHRASES[place])}" if place else ""
        prompts.append(
            Prompt(
                f"{prefix}{article} {subject}{worn}{where}",
                {"class": noun, "place": place, "colour": colour, "accessory": accessory},
            )
        )
    return prompts


def labels_of(prompts: list[Prompt]) -> np.ndarray:
    """Return prompts x questions, IGNORED where a prompt has no answer."""
    return np.asarray(
        [
            [
                IGNORED if (value := prompt.truth[name]) is None else LABELS[name].index(value)
                for name in LABELS
            ]
            for prompt in prompts
        ]
    )


def generate(pipe: Any, prompts: list[Prompt], steps: int, guidance: float) -> np.ndarray:
    """Return one image per prompt, each from its own seed."""
    images: list[np.ndarray] = []
    for start in range(0, len(prompts), 16):
        batch = prompts[start : start + 16]
        generators = [torch.Generator().manual_seed(start + i) for i in range(len(batch))]
        result = pipe(
            [prompt.text for prompt in batch],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generators,
            output_type="np",
        ).images
        images.extend((result * 255.0).round().astype(np.uint8))
    return np.stack(images)


@torch.no_grad()
def reconstruction_psnr(vae: Any, pixels: np.ndarray) -> float:
    """Return the mean over images of the PSNR after encoding and decoding, in dB."""
    values: list[torch.Tensor] = []
    for start in range(0, len(pixels), 50):
        images = to_images(pixels[start : start + 50], CPU)
        decoded = vae.decode(vae.encode(images).latent_dist.mode()).sample.clamp(-1, 1)
        error = (decoded - images).square().mean(dim=(1, 2, 3)) / 4.0
        values.append(-10.0 * torch.log10(error))
    return float(torch.cat(values).mean())


def load_photographs(folder: Path) -> np.ndarray:
    """Return every photograph below a folder, cropped to its central square, at 64 pixels."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in {".jpg", ".jpeg", ".png"})
    squares = []
    for path in paths:
        image = Image.open(path).convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        squares.append(np.asarray(square.resize((64, 64), Image.Resampling.LANCZOS)))
    return np.stack(squares)


def load_pipeline(folder: Path) -> tuple[Any, float]:
    """Return the pipeline and the seconds of loading, without imports."""
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel, CLIPTokenizer

    assert CLIPTextModel is not None
    assert CLIPTokenizer is not None
    start = time.perf_counter()
    pipe = StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, local_files_only=True
    )
    seconds = time.perf_counter() - start
    pipe.set_progress_bar_config(disable=True)
    return pipe, seconds


def latency(pipe: Any) -> float:
    """Return the seconds of four images at 25 steps, after a warm-up."""
    pipe("a dog", num_inference_steps=2)
    start = time.perf_counter()
    pipe("a red dog on the beach", num_inference_steps=25, num_images_per_prompt=4)
    return time.perf_counter() - start


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure everything, and print each result."""
    torch.set_num_threads(options.threads)
    judge = train_judge(options.folder / "judge.pt")
    fresh, fresh_labels = draw(FRESH_SEED, NUM_FRESH, softened=False)
    result: dict[str, Any] = {
        "num_prompts": options.num_prompts,
        "steps": options.steps,
        "guidance": options.guidance,
        "threads": options.threads,
        "judge": score(judge, fresh, fresh_labels),
    }
    print("judge on fresh renders", result["judge"], flush=True)
    pipe, result["load_seconds"] = load_pipeline(options.weights)
    result["four_images_seconds"] = latency(pipe)
    result["vae_psnr_renders"] = reconstruction_psnr(pipe.vae, fresh[:500])
    if options.photographs:
        photographs = load_photographs(options.photographs)
        result["vae_psnr_photographs"] = reconstruction_psnr(pipe.vae, photographs)
        result["num_photographs"] = len(photographs)
    prompts = make_prompts(options.num_prompts)
    start = time.perf_counter()
    pixels = generate(pipe, prompts, options.steps, options.guidance)
    result["generation_seconds_per_image"] = (time.perf_counter() - start) / len(prompts)
    result["generated"] = score(judge, pixels, labels_of(prompts))
    np.save(options.folder / "generated.npy", pixels)
    return result


def rows_of(result: dict[str, Any]) -> dict[str, Any]:
    """Return the figures for printing: a row each, shares with their ceiling and target."""
    rows: dict[str, Any] = {}
    for name, value in result.items():
        if name == "generated":
            for question, share in value.items():
                ceiling, target = result["judge"][question], TARGETS[question]
                rows[f"{question} right"] = f"{share:.3f} (renders {ceiling:.3f}, target {target})"
        elif name != "judge":
            rows[name] = value
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-prompts", type=int, default=512)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=7.5, help="default: 7.5, as diffusers'")
    parser.add_argument(
        "--threads",
        type=int,
        default=min(2, os.cpu_count() or 1),
        help="use 1 on a busy machine: more threads spin",
    )
    parser.add_argument("--weights", type=Path, default=MINIATURE_FOLDER)
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("build/miniature"),
        help="where the judge is kept between runs (default: build/miniature)",
    )
    parser.add_argument("--photographs", type=Path, help="photographs for the autoencoder")
    parser.add_argument("--keep", action="store_true", help="keep the figures in results/")
    options = parser.parse_args()
    result = measure(options)
    print_table(rows_of(result))
    finish("miniature", result, options.keep)


if __name__ == "__main__":
    main()
