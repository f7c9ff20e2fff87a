"""How fast are steps at real size? Stable Diffusion 1.5 in full, and LoRAs of it and of SDXL.

    python benchmarks/gpu.py [--compile] [--precision bf16] [--packs 1 2 4 8 16] [--keep]
    python benchmarks/gpu.py --tiny        # small models, also without a GPU: shows that it runs

LoRAs are measured with several subjects in one batch too; a step of all counts as one of each.

Weights are random, so nothing is downloaded. The share is of the rate at which the device
multiplies large matrices in the same precision, measured beside it.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from typing import Any

import torch
from measure import finish, print_table
from steps import train
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dbray.bases.backbone import Network
from dbray.bases.condition import Condition
from dbray.bases.families import family_of
from dbray.bases.schedule import NoiseSchedule
from dbray.errors import OutOfMemory
from dbray.method.adapter import inject
from dbray.method.low_rank import LowRank
from dbray.spec.recipe import Recipe
from dbray.spec.resources import Resources
from dbray.training.data import Latents, TrainingData
from dbray.training.loop import Course
from dbray.training.pack import Pack, Slots, make_pack

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
    "SD 1.5, LoRA": ("StableDiffusionPipeline", _SD15, 64, {"method": "lora"}),
    "SDXL, LoRA": ("StableDiffusionXLPipeline", _SDXL, 128, {"method": "lora"}),
}
"""Pipeline, configuration of the UNet, side of the latents, and what the recipe says."""


def make_network(
    pipeline: str, config: dict[str, Any], recipe: Recipe, num_slots: int
) -> tuple[nn.Module, Slots]:
    """A UNet with random weights, prepared for the method of the recipe, and its slots."""
    from diffusers import UNet2DConditionModel

    family = family_of(pipeline)
    unet = UNet2DConditionModel(in_channels=4, out_channels=4, **config)
    if recipe.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    network = Network(family, {family.denoiser: unet})
    if recipe.method.kind != "lora":
        return network, Slots(1, lambda _: None)
    ends = [end for group in family.default_targets for end in family.targets[group]]
    adapter = inject(unet, ends, LowRank(16, 16, num_slots))
    for slot in range(num_slots):
        adapter.reset(slot, torch.Generator().manual_seed(0))
    return network, Slots(num_slots, adapter.assign)


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


def measure(
    name: str, num_slots: int, args: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    """Steps per second of one case, and what they are of the device's rate."""
    pipeline, config, side, chosen = CASES[name]
    if args.tiny:
        config, side = {**config, **_SMALL}, 16
    recipe = Recipe.model_validate({**chosen, "steps": args.steps, "precision": args.precision,
                                    "gradient_checkpointing": args.checkpoint})  # fmt: skip
    torch.manual_seed(0)
    network, slots = make_network(pipeline, config, recipe, num_slots)
    pack = make_pack(network, recipe, Resources(compile=args.compile), device, {}, slots)
    alphas = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)
    schedule = NoiseSchedule(alphas, "epsilon").to(device)
    data = make_data(config, side, device)
    begin = partial(courses_of, data, recipe, schedule, num_slots)
    num_operations = 0 if args.compile else operations(pack, begin(1))
    train(pack, begin(_WARM_STEPS))
    start = time.perf_counter()
    train(pack, begin(recipe.steps))
    seconds = time.perf_counter() - start
    rate = num_slots * recipe.steps / seconds
    found = {"steps_per_second": rate, "subjects_per_hour_of_800_steps": 3600 * rate / 800}
    if num_operations:
        found["teraflops"] = num_operations * recipe.steps / seconds / 1e12
        found["share_of_matrix_rate"] = found["teraflops"] / matrix_rate(device, args)
    if device.type == "cuda":
        found["peak_gigabytes"] = torch.cuda.max_memory_allocated(device) / 1e9
        torch.cuda.reset_peak_memory_stats(device)
    return {key: round(value, 3) for key, value in found.items()}


def courses_of(
    data: TrainingData, recipe: Recipe, schedule: NoiseSchedule, num_slots: int, steps: int
) -> dict[int, Course]:
    """A subject for every slot."""
    changed = recipe.model_copy(update={"steps": steps})
    return {slot: Course(data, changed, schedule) for slot in range(num_slots)}


def operations(pack: Pack, courses: dict[int, Course]) -> int:
    """Floating-point operations of one step, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        pack.step(courses)
    for engine in pack.engines:
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
    parser.add_argument("--packs", type=int, nargs="+", default=[1, 2, 4, 8, 16])
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
    for name, (*_, chosen) in CASES.items():
        for num_slots in args.packs if chosen else [1]:
            try:
                found = measure(name, num_slots, args, device)
            except OutOfMemory:
                print(f"{name}: the memory does not hold {num_slots} slots")
                break
            facts |= {f"{name}, pack {num_slots}: {key}": value for key, value in found.items()}
    print_table(facts)
    finish("gpu", facts, args.keep)


if __name__ == "__main__":
    main()
