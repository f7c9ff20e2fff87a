"""What only a GPU shows: `make test-gpu`. Tiny random bases, no download."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kit.packs import World, gap
from kit.training import Trained, recipe_of

from dbray import bases
from dbray.bases import Compute
from dbray.errors import OutOfMemory
from dbray.spec.resources import Resources
from dbray.training.loop import finetune

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda", 0)
LORA = {"kind": "lora", "rank": 4}
ROOT = Path(__file__).parents[2]
LOST = """
import torch
from dbray.training.device import device_is_lost
gpu = torch.device("cuda", 0)
try:
    torch.zeros(1, device=gpu)[torch.tensor([7], device=gpu)].sum().item()
except RuntimeError as error:
    print(device_is_lost(gpu, error), device_is_lost(gpu, RuntimeError("of cuBLAS")))
"""


@pytest.fixture
def base(tiny_base):
    return bases.resolve(str(tiny_base))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["full", LORA], ids=["full", "lora"])
def test_steps_wait_for_nothing(base, method, precision):
    """Copies are from pinned memory, and nothing is read but a loss point, one point later."""
    recipe = recipe_of(method, steps=40, precision=precision)
    trained = Trained(base, recipe, device=GPU)
    trained.engine.reset()

    def on_step(step, progress):
        torch.cuda.set_sync_debug_mode("error" if 2 <= step < 38 else "default")

    try:
        schedule = trained.backbone.schedule.to(GPU)
        curve = finetune(trained.engine, schedule, trained.data, recipe, on_step=on_step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [point.step for point in curve] == list(range(1, 41))


def test_packed_subjects_do_not_affect_each_other(base):
    world = World(base, recipe_of(LORA), num_slots=3, device=GPU)
    world.begin(0, "rex")
    begun, alone = world.weights(0), world.train({0: "rex"})["rex"]
    together = world.train({0: "tom", 1: "ace", 2: "rex"})
    # Attention's backward pass adds up in a random order.
    assert gap(together["rex"], alone, begun) < 0.05 < gap(together["tom"], alone, begun)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["full", LORA], ids=["full", "lora"])
def test_a_reset_engine_starts_from_the_exact_base(base, method, precision, compiled):
    recipe = recipe_of(method, precision=precision)
    trained = Trained(base, recipe, resources=Resources(compile=compiled), device=GPU)
    begun = {name: p.float().cpu() for name, p in trained.begun.items()}
    trained.engine.reset()
    found = trained.engine.weights()
    assert all(torch.equal(tensor, begun[name]) for name, tensor in found.items())
    losses = [point.loss for point in trained.curve]
    uncompiled = Trained(base, recipe, device=GPU)
    assert losses == pytest.approx([p.loss for p in uncompiled.curve], rel=0.05)


def test_frozen_weights_are_in_16_bits_and_masters_in_float32(base):
    trained = Trained(base, recipe_of(LORA, precision="bf16"), device=GPU)
    types = {(p.requires_grad, p.dtype) for p in trained.network.parameters()}
    assert types == {(True, torch.float32), (False, torch.bfloat16)}
    assert {tensor.dtype for tensor in trained.engine.weights().values()} == {torch.float32}


def test_encoders_leave_the_device(base):
    backbone = bases.load(base, Compute("cuda", visits=True))
    before = torch.cuda.memory_allocated()
    condition = backbone.condition(["a dog"])
    assert condition.tensors["text"].device.type == "cuda"
    del condition
    assert torch.cuda.memory_allocated() == before


def test_an_engine_goes_on_after_its_memory_was_full(base):
    recipe = recipe_of("full")
    trained = Trained(base, recipe, device=GPU)
    trained.engine.reset()
    schedule = trained.backbone.schedule.to(GPU)
    latents, rest = torch.zeros(64, 4, 64, 64, device=GPU), rest_of(trained, 64)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-6, GPU)  # what is held stays, nothing is added
    try:
        with pytest.raises(OutOfMemory, match="batch_size"):
            trained.engine(latents, *rest)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, GPU)
    trained.engine.reset()
    curve = finetune(trained.engine, schedule, trained.data, recipe)
    assert [p.loss for p in curve] == pytest.approx([p.loss for p in trained.curve], rel=1e-3)


def rest_of(trained: Trained, num_rows: int):
    """Timesteps and condition of some rows."""
    condition = trained.data.prior_prompt.repeat(num_rows).tensors
    return torch.zeros(num_rows, dtype=torch.int64, device=GPU), condition


def test_a_lost_device_is_noticed():
    found = subprocess.run([sys.executable, "-c", LOST], capture_output=True, text=True, cwd=ROOT)
    assert found.stdout.split() == ["True", "True"], found.stderr


@pytest.mark.parametrize("offload", [None, "optimiser"])
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2])
def test_zero_over_nccl_gives_the_losses_of_plain_torch(base, tmp_path, stage, offload, world_size):
    if torch.cuda.device_count() < world_size:
        pytest.skip(f"needs {world_size} GPUs")
    resources = {"zero_stage": stage, "offload": offload}
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(base.folder), str(tmp_path), str(rank),
             str(world_size), json.dumps(resources)],
            env={**os.environ, "LOCAL_RANK": str(rank), "DS_ACCELERATOR": "cuda",
                 "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        )
        for rank in range(world_size)
    ]  # fmt: skip
    assert [rank.wait(timeout=240) for rank in ranks] == [0] * world_size
    expected = [point.loss for point in Trained(base, recipe_of(LORA), device=GPU).curve]
    for rank in range(world_size):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found == pytest.approx(expected, rel=1e-2)  # TF32 adds up in another order


def be_a_rank(folder: str, out: Path, rank: int, world_size: int, resources: dict) -> None:
    from torch import distributed as dist

    from dbray.training.batches import Share

    torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl", init_method=f"file://{out}/group", rank=rank, world_size=world_size
    )
    trained = Trained(
        bases.resolve(folder), recipe_of(LORA), resources=Resources(**resources),
        share=Share(rank, world_size), device=torch.device("cuda", rank),
    )  # fmt: skip
    (out / f"{rank}.json").write_text(json.dumps([point.loss for point in trained.curve]))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    be_a_rank(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]),
              json.loads(sys.argv[5]))  # fmt: skip
