"""How fast are steps at real size? Stable Diffusion 1.5 in full, and a LoRA of SDXL.

    python benchmarks/gpu.py [--compile] [--precision bf16] [--keep]
    python benchmarks/gpu.py --tiny        # small models, also without a GPU: shows that it runs

Weights are random, so nothing is downloaded. The share is of the rate at which the device
multiplies large matrices in the same precision, measured beside it.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from measure import finish, print_table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dbray.bases.backbone import Network
from dbray.bases.condition import Condition
from dbray.bases.families import family_of
from dbray.bases.schedule import NoiseSchedule
from dbray.method.adapter import inject
from dbray.method.low_rank import LowRank
from dbray.spec.sections import Recipe, Resources
from dbray.training.engine import make_engine
from dbray.training.loop import Latents, Share, TrainingData, draw_batch, finetune

SUBJECT_STEPS = 800
_WARM_STEPS = 5
_SD15 = {"cross_attention_dim": 768, "attention_head_dim": 8}
_SDXL = {
    "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20],
    "block_out_channels": (320, 640, 1280), "transformer_layers_per_block": [1, 2, 10],
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816, "use_linear_projection": True,
}  # fmt: skip
_SMALL = {"block_out_channels": (32, 64), "norm_num_groups": 8, "attention_head_dim": 8,
          "layers_per_block": 1, "transformer_layers_per_block": 1,
          "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
          "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}  # fmt: skip
CASES = {
    "SD 1.5, full": ("StableDiffusionPipeline", _SD15, 64, {}),
    "SDXL, LoRA": ("StableDiffusionXLPipeline", _SDXL, 128, {"method": "lora"}),
}
"""Pipeline, configuration of the UNet, side of the latents, and what the recipe says."""


def make_network(pipeline: str, config: dict[str, Any], recipe: Recipe) -> nn.Module:
    """A UNet with random weights, prepared for the method of the recipe."""
    from diffusers import UNet2DConditionModel

    family = family_of(pipeline)
    unet = UNet2DConditionModel(in_channels=4, out_channels=4, **config)
    if recipe.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if recipe.method.kind == "lora":
        ends = [end for group in family.default_targets for end in family.targets[group]]
        inject(unet, ends, LowRank(16, 16)).reset(0, torch.Generator())
    return Network(family, {family.denoiser: unet})


def make_data(config: dict[str, Any], side: int, device: torch.device) -> TrainingData:
    """Latents and texts of noise."""
    tensors = {"text": torch.randn(1, 77, config["cross_attention_dim"])}
    if "addition_time_embed_dim" in config:
        sizes = 6 * config["addition_time_embed_dim"]
        pooled = config["projection_class_embeddings_input_dim"] - sizes
        tensors |= {"pooled": torch.randn(1, pooled), "pixels_per_latent": torch.tensor([8.0])}
    prompt = Condition(tensors).to(device)
    noise = Latents(torch.randn(4, 4, side, side), torch.full((4, 4, side, side), 0.1))
    return TrainingData("noise", noise, ((0,), (1,), (2,), (3,)), prompt.repeat(4), noise, prompt)


def measure(name: str, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Steps per second of one case, and what they are of the device's rate."""
    pipeline, config, side, chosen = CASES[name]
    if args.tiny:
        config, side = {**config, **_SMALL}, 16
    recipe = Recipe.model_validate({**chosen, "steps": args.steps, "precision": args.precision,
                                    "gradient_checkpointing": args.checkpoint})  # fmt: skip
    torch.manual_seed(0)
    network = make_network(pipeline, config, recipe)
    engine = make_engine(network, recipe, Resources(compile=args.compile), device)
    alphas = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)
    schedule = NoiseSchedule(alphas, "epsilon").to(device)
    data = make_data(config, side, device)
    num_operations = 0 if args.compile else operations(engine, schedule, data, recipe)
    finetune(engine, schedule, data, recipe.model_copy(update={"steps": _WARM_STEPS}))
    start = time.perf_counter()
    finetune(engine, schedule, data, recipe)  # reads the loss at its end, so the device is done
    rate = recipe.steps / (time.perf_counter() - start)
    found = {"steps_per_second": round(rate, 3), "seconds_per_800_steps": SUBJECT_STEPS / rate}
    if num_operations:
        found["teraflops"] = num_operations * rate / 1e12
        found["share_of_matrix_rate"] = found["teraflops"] / matrix_rate(device, args)
    if device.type == "cuda":
        found["peak_gigabytes"] = torch.cuda.max_memory_allocated(device) / 1e9
        torch.cuda.reset_peak_memory_stats(device)
    return {key: round(value, 3) for key, value in found.items()}


def operations(engine: Any, schedule: Any, data: TrainingData, recipe: Recipe) -> int:
    """Floating-point operations of one step, forward and backward."""
    batch = draw_batch(data, recipe, schedule, 0, Share())
    with FlopCounterMode(display=False) as counter:
        engine(batch.noisy_BCHW, batch.timesteps_B, batch.condition.tensors).mean().backward()
    engine.reset()
    return counter.get_total_flops()


def matrix_rate(device: torch.device, args: argparse.Namespace) -> float:
    """Teraflops of large products of matrices, in the precision of the steps."""
    size, times = (512, 5) if args.tiny else (8192, 50)
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    torch.set_float32_matmul_precision("high")
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    (left @ right).sum().item()
    start = time.perf_counter()
    for _ in range(times):
        product = left @ right
    product.sum().item()  # waits for all of them
    return times * 2 * size**3 / (time.perf_counter() - start) / 1e12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--compile", action="store_true", help="with resources.compile")
    parser.add_argument("--checkpoint", action="store_true", help="with gradient_checkpointing")
    parser.add_argument("--tiny", action="store_true", help="small models, to see that it runs")
    parser.add_argument("--keep", action="store_true", help="keep the figures in results/")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not args.tiny:
        parser.error("there is no GPU; --tiny runs without one")
    facts: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "precision": args.precision, "compile": args.compile, "steps": args.steps,
        "tiny": args.tiny,
    }  # fmt: skip
    for name in CASES:
        found = measure(name, args, device)
        facts |= {f"{name}: {key}": value for key, value in found.items()}
    print_table(facts)
    finish("gpu", facts, args.keep)


if __name__ == "__main__":
    main()
