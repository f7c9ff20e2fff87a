"""Both real engines: plain torch here and in processes, DeepSpeed in separate processes.

Run as a script, this file is one rank: `test_engine.py FOLDER RANK WORLD_SIZE` runs every ZeRO
stage and precision and writes its findings to FOLDER/RANK.json. The tests check them.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from dbray.errors import LaneLost, OutOfMemory, TrainError
from dbray.spec.recipe import Recipe
from dbray.spec.resources import Resources
from dbray.training.device import device_is_lost
from dbray.training.engine import make_engine, memory_plan
from dbray.training.plain import TorchEngine

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
STAGES = (0, 1, 2, 3)
RATES = [0.5e-3, 1e-3, 1e-3, 0.75e-3, 0.25e-3]
"""Learning rates of five steps: a warm-up over two, then half a cosine."""
# bf16 publishes the masters, fp32 their average, so both are tested in every case.
RECIPES = {
    "fp32": Recipe(
        learning_rate=1e-3,
        max_grad_norm=0.5,
        ema_decay=0.9,
        steps=5,
        warmup_steps=2,
        rate_schedule="cosine",
    ),
    "bf16": Recipe(learning_rate=1e-3, max_grad_norm=0.5, precision="bf16"),
}
CASES = [(stage, precision) for precision in RECIPES for stage in STAGES]


class Net(nn.Module):
    """A conv net with a time embedding and sizes that no number of ranks divides."""

    def __init__(self, seed=0, frozen=False):
        super().__init__()
        self.inside = nn.Conv2d(3, 9, 3, padding=1)
        self.time = nn.Linear(1, 9)
        self.norm = nn.GroupNorm(3, 9)
        self.outside = nn.Conv2d(9, 3, 3, padding=1)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
        self.time.requires_grad_(not frozen)

    def forward(self, images, times):
        hidden = self.inside(images) + self.time(times[:, None] / 1000)[..., None, None]
        return (self.outside(torch.nn.functional.silu(self.norm(hidden))),)


class InFloat(nn.Module):
    """A net whose answer is float32, as an engine's is."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images, times):
        return self.net(images, times)[0].float()


def batch(step, rank):
    generator = torch.Generator().manual_seed(1000 * rank + step)
    images = torch.randn(2, 3, 8, 8, generator=generator)
    noise = torch.randn(2, 3, 8, 8, generator=generator)
    return images, torch.randint(0, 1000, (2,), generator=generator).float(), noise


def loss_of(predict, step, rank):
    images, times, noise = batch(step, rank)
    output = predict(images, times)
    return (output - noise).square().mean()


def train(engine, steps, rank=0):
    """Take steps; return losses and gradient norms unrounded, for bitwise comparison."""
    seen = []
    for step in steps:
        loss = loss_of(engine, step, rank)
        norm = engine.step(loss)
        assert norm.shape == ()
        assert loss.dtype == torch.float32
        seen.append((loss.item(), norm.item()))
    return seen


def reference(recipe, num_steps, world_size=1):
    """Train in a plain loop on the mean over the ranks; return the expected weights()."""
    module = Net()
    parameters = dict(module.named_parameters())
    optimizer = torch.optim.AdamW(module.parameters(), foreach=False)
    rates = RATES if recipe.warmup_steps else [recipe.learning_rate] * num_steps
    average = {name: p.detach().clone() for name, p in parameters.items()}
    for step in range(num_steps):
        losses = [loss_of(lambda *x: module(*x)[0], step, rank) for rank in range(world_size)]
        optimizer.zero_grad()
        optimizer.param_groups[0]["lr"] = rates[step]
        torch.stack(losses).mean().backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), recipe.max_grad_norm)
        optimizer.step()
        decay = min(recipe.ema_decay or 0, (2 + step) / (11 + step))
        for name, value in average.items():
            value.copy_(decay * value + (1 - decay) * parameters[name].detach())
    return average


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def gap(first, second):
    """Return the mean distance of the elements."""
    distances = [(first[name] - second[name]).detach().abs().flatten() for name in second]
    return torch.cat(distances).mean().item()


# ---- one rank -----------------------------------------------------------------------------------


def examine(stage, precision, rank, world_size):
    """Use one engine like a lane, and return the results."""
    recipe, base = RECIPES[precision], dict(Net().named_parameters())
    engine = make_engine(Net(), recipe, Resources(zero_stage=stage), CPU)
    found = {"starts_exact": same(engine.weights(), base if rank == 0 else {})}
    losses = train(engine, range(2), rank)
    state = engine.state()
    engine.weights()  # must not affect later steps
    losses += train(engine, range(2, 5), rank)
    weights, end = engine.weights(), engine.state()
    found["names"] = {name: list(tensor.shape) for name, tensor in weights.items()}
    found["dtypes"] = sorted({str(tensor.dtype) for tensor in weights.values()})
    found["losses"] = losses
    momenta = [tensor.flatten() for name, tensor in end.items() if name.startswith("exp_avg/")]
    found["momentum"] = torch.cat(momenta).norm().item()
    if rank == 0:
        found["gap"] = gap(reference(recipe, 5, world_size), weights)
        found["moved"] = gap(base, weights)

    # The state after a failed subject: a call without a step, then nan everywhere.
    loss_of(engine, 9, rank)
    engine.step(loss_of(engine, 9, rank) * float("nan"))
    engine.reset()
    found["reset_is_base"] = same(engine.weights(), base if rank == 0 else {})
    found["reset_losses"] = train(engine, range(5), rank) == losses
    found["reset_weights"] = same(engine.weights(), weights) and same(engine.state(), end)

    rebuilt = make_engine(Net(), recipe, Resources(zero_stage=stage), CPU)
    rebuilt.load_state(state)
    found["loaded_losses"] = train(rebuilt, range(2, 5), rank) == losses[2:]
    found["loaded_weights"] = same(rebuilt.weights(), weights) and same(rebuilt.state(), end)
    rebuilt.reset()
    found["rebuilt_losses"] = train(rebuilt, range(5), rank) == losses
    found["state_bytes"] = sum(t.numel() * t.element_size() for t in state.values())
    return found


def break_off(stage):
    """Let the memory run out in the middle of a step; say what the step and a reset raise."""
    engine = make_engine(Net(), RECIPES["fp32"], Resources(zero_stage=stage), CPU)
    raised = []
    for call in (lambda: engine.step(exhausting(loss_of(engine, 0, 0))), engine.reset):
        try:
            call()
        except (OutOfMemory, LaneLost) as error:
            raised.append(type(error).__name__)
    return raised


def exhausting(loss):
    def run_out(_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    loss.register_hook(run_out)
    return loss * 1.0


def be_a_rank(folder, rank, world_size):
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=world_size
        )
    found = {f"{s} {p}": examine(s, p, rank, world_size) for s, p in CASES}
    found["broken"] = [break_off(stage) for stage in STAGES]
    (folder / f"{rank}.json").write_text(json.dumps(found))
    if world_size > 1:
        dist.barrier()
    dist.destroy_process_group()


# ---- the tests ----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def findings(request, tmp_path_factory):
    """The findings of each rank, and the output of the processes; no compiler is on their path."""
    folder = tmp_path_factory.mktemp("ranks")
    kept = {k: v for k, v in os.environ.items() if k not in ("DS_ACCELERATOR", "LOCAL_RANK")}
    environment = kept | {
        "PYTHONPATH": str(ROOT),
        "PATH": str(folder),
        "TORCH_EXTENSIONS_DIR": str(folder / "extensions"),
        "OMP_NUM_THREADS": "1",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), str(rank), str(request.param)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(request.param)
    ]
    try:
        printed = [rank.communicate(timeout=240)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * len(ranks), "\n".join(printed)
    found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(len(ranks))]
    return {"ranks": found, "printed": printed, "compiled": (folder / "extensions").exists()}


def test_deepspeed_is_silent_and_compiles_nothing(findings):
    # Messages of other libraries about the machine are allowed.
    said = re.findall(r".*(?:deepspeed|warning|\[info\]).*", "".join(findings["printed"]), re.I)
    assert said == []
    assert not findings["compiled"]


@pytest.mark.parametrize(("stage", "precision"), CASES)
class TestEveryStage:
    def of(self, findings, stage, precision):
        return [rank[f"{stage} {precision}"] for rank in findings["ranks"]]

    def test_masters_start_as_the_exact_base(self, findings, stage, precision):
        assert all(rank["starts_exact"] for rank in self.of(findings, stage, precision))

    def test_reset_equals_a_rebuild_bitwise(self, findings, stage, precision):
        for rank in self.of(findings, stage, precision):
            assert rank["reset_is_base"]
            assert rank["reset_losses"]
            assert rank["reset_weights"]
            assert rank["rebuilt_losses"]

    def test_a_loaded_state_continues_bitwise(self, findings, stage, precision):
        for rank in self.of(findings, stage, precision):
            assert rank["loaded_losses"]
            assert rank["loaded_weights"]

    def test_only_rank_0_gets_whole_float32_weights(self, findings, stage, precision):
        first, *others = self.of(findings, stage, precision)
        assert first["names"] == {n: list(p.shape) for n, p in Net().named_parameters()}
        assert first["dtypes"] == ["torch.float32"]
        assert all(rank["names"] == {} for rank in others)

    def test_weights_equal_those_of_a_plain_loop(self, findings, stage, precision):
        first, *_ = self.of(findings, stage, precision)
        # bf16 flips the sign of some gradients near zero, and Adam's steps have the length of
        # the learning rate for any gradient.
        assert first["gap"] < (2e-6 if precision == "fp32" else 1e-4) < first["moved"] / 5

    def test_the_memory_plan_matches_the_memory_in_use(self, findings, stage, precision):
        ranks = self.of(findings, stage, precision)
        num_parameters = sum(p.numel() for p in Net().parameters())
        resources = Resources(zero_stage=stage, gpus_per_subject=len(ranks))
        plan = memory_plan(num_parameters, 0, RECIPES[precision], resources)
        kept = plan["optimiser"] + plan["ema"]
        if stage == 0 or (stage == 3 and precision == "fp32"):  # the parameters are the masters
            kept += 4 * -(-num_parameters // (len(ranks) if stage else 1))
        for rank in ranks:  # partitions are padded, and the step count is a number per tensor
            assert kept <= rank["state_bytes"] < kept * 1.1


def test_reset_fails_after_an_interrupted_step_of_ranks_or_deepspeed(findings):
    for rank in findings["ranks"]:
        plain, *zero = rank["broken"]
        alone = len(findings["ranks"]) == 1
        assert plain == (["OutOfMemory"] if alone else ["OutOfMemory", "LaneLost"])
        assert zero == [["OutOfMemory", "LaneLost"]] * 3


@pytest.mark.parametrize("stage", STAGES[1:])
def test_zero_clips_gradients_like_plain_torch(findings, stage):
    ranks = findings["ranks"]
    assert min(norm for _, norm in ranks[0][f"{stage} fp32"]["losses"]) > 0.5  # so all are clipped
    # Adam's steps hide the gradients' scale, its first moments do not. Ranks have parts of them.
    squared = sum(rank[f"{stage} fp32"]["momentum"] ** 2 for rank in ranks)
    assert squared**0.5 == pytest.approx(ranks[0]["0 fp32"]["momentum"], rel=1e-5)


def test_a_device_that_no_longer_responds_is_lost(monkeypatch):
    """The GPU is a fake."""
    gpu, asked = torch.device("cuda", 0), []
    of_cublas = RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED")

    def no_answer(device):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.accelerator, "synchronize", asked.append)
    assert not device_is_lost(gpu, of_cublas)
    assert not device_is_lost(gpu, torch.OutOfMemoryError("CUDA out of memory"))
    assert asked == [gpu, gpu]
    monkeypatch.setattr(torch.accelerator, "synchronize", no_answer)
    assert device_is_lost(gpu, of_cublas)
    assert not device_is_lost(CPU, of_cublas)
    assert device_is_lost(CPU, torch.AcceleratorError("CUDA error: unspecified launch failure"))


def test_gradients_are_clipped_and_the_reported_norm_is_unclipped():
    engines = [
        make_engine(Net(), Recipe(learning_rate=1e-3, max_grad_norm=norm), Resources(), CPU)
        for norm in (1e-4, 1e9)
    ]
    clipped, free = (train(engine, range(1))[0] for engine in engines)
    assert clipped == free
    assert free[1] > 0.1
    moments = [engine.state()["exp_avg/inside.weight"].norm().item() for engine in engines]
    assert moments[0] < 1e-4 * 0.1 * 1.001 < moments[1]


def test_weights_and_state_are_copies():
    engine = make_engine(Net(), Recipe(learning_rate=1e-2, ema_decay=0.5), Resources(), CPU)
    weights, state = engine.weights(), engine.state()
    train(engine, range(2))
    assert same(weights, dict(Net().named_parameters()))
    assert state["num_steps"] == 0
    assert engine.state()["num_steps"] == 2
    assert state["step/inside.weight"] == 0


def test_only_parameters_that_require_gradients_are_trained_and_published():
    engine = make_engine(Net(frozen=True), Recipe(learning_rate=1e-2), Resources(), CPU)
    train(engine, range(1))
    assert {name.split(".")[0] for name in engine.weights()} == {"inside", "norm", "outside"}
    assert torch.equal(engine.module.time.weight, Net().time.weight)


def test_base_weights_in_lower_precision_get_float32_masters():
    engine = make_engine(Net().bfloat16(), Recipe(), Resources(), CPU)
    assert {p.dtype for p in engine.module.parameters()} == {torch.float32}


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_frozen_weights_keep_their_16_bits(stored):
    module = Net(frozen=True).to(stored)
    recipe = Recipe(precision="bf16", learning_rate=1e-3)
    engine = make_engine(module, recipe, Resources(), CPU)
    train(engine, range(2))
    found = {name.partition(".")[0]: p.dtype for name, p in module.named_parameters()}
    assert found.pop("time") == stored
    assert set(found.values()) == {torch.float32}


def test_frozen_float32_weights_are_held_in_16_bits_in_bfloat16():
    module = Net(frozen=True)
    make_engine(module, Recipe(precision="bf16"), Resources(), CPU)
    assert module.time.weight.dtype == torch.bfloat16
    assert module.inside.weight.dtype == torch.float32
    exact = Net(frozen=True)
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = (loss_of(InFloat(net), 0, 0) for net in (module, exact))
    assert torch.equal(found, wanted)  # autocast rounds them as well


def test_attention_in_bfloat16_on_a_cpu_is_not_the_fused_one_whose_gradients_are_slow():
    heads = torch.randn(1, 2, 16, 8, requires_grad=True)

    def gradient_of(precision: str, dtype: torch.dtype) -> str:
        make_engine(Net(), Recipe(precision=precision), Resources(), CPU)
        attended = nn.functional.scaled_dot_product_attention(*3 * (heads.to(dtype),))
        return type(attended.grad_fn).__name__

    assert "Flash" not in gradient_of("bf16", torch.bfloat16)
    assert "Flash" in gradient_of("fp32", torch.float32)  # and the process can change its mind


def test_a_state_of_something_else_is_refused():
    engine = make_engine(Net(), Recipe(), Resources(), CPU)
    averaged = make_engine(Net(), Recipe(ema_decay=0.5), Resources(), CPU)
    with pytest.raises(TrainError, match="another base, recipe"):
        averaged.load_state(engine.state())
    shorter = {k: v[:1] if v.ndim else v for k, v in engine.state().items()}
    with pytest.raises(TrainError, match="another base, recipe"):
        engine.load_state(shorter)


def test_nothing_to_train_is_an_error():
    with pytest.raises(TrainError, match="nothing to train"):
        make_engine(Net().requires_grad_(False), Recipe(), Resources(), CPU)


def test_out_of_memory_is_reported_and_plain_torch_continues():
    engine = make_engine(Net(), Recipe(), Resources(), CPU)
    before = train(engine, range(2))
    with pytest.raises(OutOfMemory, match="batch_size"):
        engine.step(exhausting(loss_of(engine, 0, 0)))
    engine.module.register_forward_pre_hook(lambda *_: exhausted())
    with pytest.raises(OutOfMemory):
        loss_of(engine, 0, 0)
    engine.module._forward_pre_hooks.clear()
    engine.reset()
    assert train(engine, range(2)) == before


def exhausted():
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_bf16_computes_in_bfloat16_and_steps_in_float32():
    seen = []
    module = Net()
    module.inside.register_forward_hook(lambda _m, _i, output: seen.append(output.dtype))
    engine = make_engine(module, Recipe(precision="bf16", learning_rate=1e-6), Resources(), CPU)
    assert isinstance(engine, TorchEngine)
    train(engine, range(1))
    assert seen == [torch.bfloat16]
    # A change of one part in a million is lost in a bfloat16 weight, but float32 masters keep it.
    assert all(gap({"": w}, {"": p}) > 0 for w, p in zip(
        engine.weights().values(), Net().parameters(), strict=True))  # fmt: skip


@pytest.mark.parametrize(
    ("stage", "precision", "parameters", "gradients", "optimiser"),
    [
        (0, "fp32", 4, 4, 8),
        (0, "bf16", 6, 4, 8),
        (1, "bf16", 2, 3, 3),
        (2, "bf16", 2, 1.5, 3),
        (3, "bf16", 0.5, 1.5, 3),
        (3, "fp32", 1, 2, 2),
    ],
)
def test_memory_plan_of_a_billion_parameters_on_four_gpus(
    stage, precision, parameters, gradients, optimiser
):
    recipe = Recipe(precision=precision, ema_decay=0.9)
    resources = Resources(zero_stage=stage, gpus_per_subject=4)
    expected = {
        "parameters": parameters,
        "frozen": 2 if stage == 3 else 8,
        "gradients": gradients,
        "optimiser": optimiser,
        "ema": 1 if stage else 4,
    }
    plan = memory_plan(10**9, 8 * 10**9, recipe, resources)
    assert plan == {kind: size * 10**9 for kind, size in expected.items()}
    if stage:
        offloaded = resources.model_copy(update={"offload": "optimiser"})
        left = {"gradients": gradients - 1, "optimiser": 0, "ema": 0}
        plan = memory_plan(10**9, 8 * 10**9, recipe, offloaded)
        assert plan == {kind: size * 10**9 for kind, size in {**expected, **left}.items()}


if __name__ == "__main__":
    be_a_rank(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
