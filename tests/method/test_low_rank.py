"""Layers with slots: PEFT is the reference; slots are independent; merging is exact."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kit.denoisers import ATTENTION, CONVOLUTIONS, tiny_transformer, tiny_unet
from peft import LoraConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dbray.errors import TrainError
from dbray.method.adapter import Adapter, inject
from dbray.method.low_rank import LowRank

DENOISERS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "unet, attention": (tiny_unet, ATTENTION),
    "unet, convolutions": (tiny_unet, CONVOLUTIONS),
    "transformer, attention": (tiny_transformer, ("to_q", "to_v", "add_k_proj", "ff.net.2")),
    "transformer, convolution": (tiny_transformer, ("pos_embed.proj", "proj_out")),
}
RATE = 1e-4


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(seed: int, rows: int = 2) -> dict[str, Tensor]:
    draw = generator(seed)
    return {
        "latents": torch.randn(rows, 4, 8, 8, generator=draw),
        "target": torch.randn(rows, 4, 8, 8, generator=draw),
        "text": torch.randn(rows, 5, 16, generator=draw),
        "timesteps": torch.randint(0, 1000, (rows,), generator=draw),
    }


def predict(module: nn.Module, rows: dict[str, Tensor]) -> Tensor:
    arguments: dict[str, Any] = {"encoder_hidden_states": rows["text"]}
    if "SD3" in type(module).__name__:
        arguments["pooled_projections"] = rows["text"].flatten(1)[:, :24]
    return module(rows["latents"], timestep=rows["timesteps"], **arguments).sample


def losses(module: nn.Module, rows: dict[str, Tensor]) -> Tensor:
    return (predict(module, rows) - rows["target"]).square().mean(dim=(1, 2, 3))


def adapted_unet(slots: int = 1, *, is_dora: bool = False) -> tuple[nn.Module, Adapter]:
    """Make a UNet whose slots all have factors that change its output."""
    unet = tiny_unet()
    adapter = inject(unet, ATTENTION + CONVOLUTIONS, LowRank(4, 8, slots, is_dora))
    for slot in range(slots):
        fill(adapter, slot, seed=slot)
    return unet, adapter


@torch.no_grad()
def fill(adapter: Adapter, slot: int, seed: int) -> None:
    draw = generator(seed)
    adapter.reset(slot, draw)
    for layer in adapter.layers.values():
        layer.up[slot] = 0.05 * torch.randn(layer.up[slot].shape, generator=draw)
        if layer.magnitude is not None:
            layer.magnitude[slot] *= 1 + 0.1 * torch.rand(
                layer.magnitude[slot].shape, generator=draw
            )


@pytest.mark.parametrize("is_dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("name", DENOISERS)
def test_losses_and_weights_of_20_steps_equal_those_of_peft(name: str, is_dora: bool) -> None:
    build, targets = DENOISERS[name]
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=list(targets), use_dora=is_dora)
    reference = inject_adapter_in_model(config, build().requires_grad_(False))
    module = build()
    adapter = inject(module, targets, LowRank(4, 8, is_dora=is_dora))
    adapter.load(0, get_peft_model_state_dict(reference))
    trained = [p for p in reference.parameters() if p.requires_grad]
    assert [p for p in module.parameters() if p.requires_grad] == list(adapter.parameters())
    optimizers = [torch.optim.AdamW(p, lr=RATE) for p in (trained, list(adapter.parameters()))]
    for step in range(20):
        both = [losses(m, batch(step)).mean() for m in (reference, module)]
        assert both[0].item() == pytest.approx(both[1].item(), abs=1e-6)
        for loss, optimizer in zip(both, optimizers, strict=True):
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    expected, state = get_peft_model_state_dict(reference), adapter.state(0)
    assert state.keys() == expected.keys()
    for key, value in state.items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-6, msg=key)
    assert all(value.abs().max() > RATE for key, value in state.items() if "lora_B" in key)


@pytest.mark.parametrize("is_dora", [False, True], ids=["lora", "dora"])
def test_merged_outputs_equal_unmerged_ones(is_dora: bool) -> None:
    unet, adapter = adapted_unet(2, is_dora=is_dora)
    rows = batch(0)
    for slot in (1, 0):
        adapter.assign(torch.tensor([slot, slot]))
        unmerged = predict(unet, rows)
        adapter.merge(slot)
        torch.testing.assert_close(predict(unet, rows), unmerged, rtol=0, atol=1e-5)
        adapter.unmerge()
        with adapter.base_only():
            assert (predict(unet, rows) - unmerged).abs().max() > 1e-3


@pytest.mark.parametrize("is_dora", [False, True], ids=["lora", "dora"])
def test_switching_merged_slots_is_bitwise_exact(is_dora: bool) -> None:
    unet, adapter = adapted_unet(2, is_dora=is_dora)
    base = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    untouched = predict(tiny_unet(), batch(0))
    adapter.merge(0)
    first = predict(unet, batch(0))
    adapter.merge(1)
    assert not torch.equal(predict(unet, batch(0)), first)
    adapter.merge(0)
    assert torch.equal(predict(unet, batch(0)), first)
    adapter.unmerge()
    assert all(torch.equal(tensor, base[name]) for name, tensor in unet.state_dict().items())
    with adapter.base_only():
        assert torch.equal(predict(unet, batch(0)), untouched)


def test_resetting_a_merged_slot_starts_from_the_base() -> None:
    fresh, expected = adapted_unet(is_dora=True)
    expected.reset(0, generator(7))
    unet, adapter = adapted_unet(is_dora=True)
    adapter.merge(0)
    adapter.reset(0, generator(7))
    assert adapter.merged is None
    for name, tensor in unet.state_dict().items():
        assert torch.equal(tensor, fresh.state_dict()[name]), name


def test_a_merged_forward_pass_runs_the_operations_of_the_plain_module() -> None:
    unet, adapter = adapted_unet()
    plain, unmerged = _operations(tiny_unet()), _operations(unet)
    adapter.merge(0)
    assert _operations(unet) == plain
    assert len(unmerged) > len(plain)


def _operations(module: nn.Module) -> list[str]:
    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            names.append(str(func))
            return func(*args, **(kwargs or {}))

    names: list[str] = []
    with torch.no_grad(), Record():
        predict(module, batch(0))
    return names


@pytest.mark.parametrize("is_dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("rows", [None, torch.tensor([0, 0, 1, 1])], ids=["shares", "assigned"])
def test_two_slots_in_one_batch_train_as_each_alone(is_dora: bool, rows: Tensor | None) -> None:
    together, packed = adapted_unet(2, is_dora=is_dora)
    packed.assign(rows)
    both = losses(together, batch(0, rows=4))
    both.sum().backward()
    for slot in (0, 1):
        alone, single = adapted_unet(1, is_dora=is_dora)
        fill(single, 0, seed=slot)
        own = slice(2 * slot, 2 * slot + 2)
        loss = losses(alone, {name: t[own] for name, t in batch(0, rows=4).items()})
        loss.sum().backward()
        torch.testing.assert_close(both[own], loss, rtol=0, atol=1e-6)
        for mine, lone in zip(packed.parameters(), single.parameters(), strict=True):
            assert mine.grad is not None
            assert lone.grad is not None
            torch.testing.assert_close(mine.grad[slot], lone.grad[0], rtol=1e-4, atol=1e-6)
            assert lone.grad.abs().max() > 1e-5


def test_assigned_rows_may_come_in_any_order() -> None:
    unet, adapter = adapted_unet(3)
    rows = batch(0, rows=4)
    adapter.assign(torch.tensor([2, 0, 2, 1]))
    mixed = predict(unet, rows)
    for row, slot in enumerate((2, 0, 2, 1)):
        adapter.assign(torch.tensor([slot]))
        alone = predict(unet, {name: t[row : row + 1] for name, t in rows.items()})
        torch.testing.assert_close(mixed[row : row + 1], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("is_dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("rows", [None, torch.tensor([0, 0, 1, 1])], ids=["shares", "assigned"])
@pytest.mark.parametrize("content", [math.nan, 3.0])
def test_slots_do_not_affect_each_other(content: float, rows: Tensor | None, is_dora: bool) -> None:
    def outputs_and_gradients(neighbour: float) -> list[Tensor]:
        unet, adapter = adapted_unet(2, is_dora=is_dora)
        adapter.assign(rows)
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter[1] = neighbour
        loss = losses(unet, batch(0, rows=4))
        loss.sum().backward()
        return [loss[:2], *(p.grad[0] for p in adapter.parameters() if p.grad is not None)]

    undisturbed, disturbed = outputs_and_gradients(0.1), outputs_and_gradients(content)
    assert all(tensor.isfinite().all() for tensor in undisturbed)
    assert all(torch.equal(a, b) for a, b in zip(undisturbed, disturbed, strict=True))


def test_a_reset_depends_only_on_the_generator() -> None:
    _, adapter = adapted_unet(3, is_dora=True)
    adapter.reset(0, generator(5))
    adapter.reset(2, generator(5))
    adapter.reset(1, generator(6))
    first, last = adapter.state(0), adapter.state(2)
    assert all(torch.equal(first[key], last[key]) for key in first)
    assert not torch.equal(*(s["conv_in.lora_A.weight"] for s in (adapter.state(1), first)))
    key, layer = "conv_in.lora_A.weight", tiny_unet().conv_in
    assert next(iter(first)) == key
    expected = torch.empty(4, *layer.weight.shape[1:])
    nn.init.kaiming_uniform_(expected, a=math.sqrt(5), generator=generator(5))
    assert torch.equal(first[key], expected)
    assert not any(tensor.any() for key, tensor in first.items() if "lora_B" in key)


@pytest.mark.parametrize("is_filled", [False, True])
def test_an_empty_or_reset_slot_equals_the_base(is_filled: bool) -> None:
    unet = tiny_unet()
    adapter = inject(unet, ATTENTION + CONVOLUTIONS, LowRank(4, 8, slots=2))
    if is_filled:
        fill(adapter, 0, seed=0)
        adapter.reset(0, generator(1))
    assert torch.equal(predict(unet, batch(0)), predict(tiny_unet(), batch(0)))


def test_the_weights_of_the_base_keep_their_names_and_are_frozen() -> None:
    unet, adapter = adapted_unet()
    added = {f"{path}.{name}" for path in adapter.layers for name in ("down", "up")}
    assert unet.state_dict().keys() - added == tiny_unet().state_dict().keys()
    trained = {name for name, p in unet.named_parameters() if p.requires_grad}
    assert trained == added


def test_a_lower_rank_is_padded_and_keeps_its_own_scale() -> None:
    small_unet = tiny_unet()
    small = inject(small_unet, ATTENTION, LowRank(rank=2, alpha=6))
    fill(small, 0, seed=3)
    large_unet = tiny_unet()
    large = inject(large_unet, ATTENTION, LowRank(rank=4, alpha=4))
    fill(large, 0, seed=4)
    large.load(0, small.state(0), dict.fromkeys(large.layers, 3.0))
    outputs = [predict(unet, batch(0)) for unet in (small_unet, large_unet)]
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-5)


def test_a_state_can_be_made_from_given_tensors() -> None:
    unet, adapter = adapted_unet(2)
    average = {name: 2 * tensor for name, tensor in unet.state_dict().items()}
    doubled, state = adapter.state(1, average), adapter.state(1)
    assert all(torch.equal(doubled[key], 2 * state[key]) for key in state)


@pytest.mark.parametrize(
    ("targets", "expected", "message"),
    [
        ((), None, "an empty list matches no"),
        (("to_q", "to_queue"), None, "'to_queue' matches no"),
        (("q",), None, "'q' matches no"),
        (("norm1",), None, "'norm1' matches no"),
        (("to_q",), 7, "match 8 layers; expected are 7"),
    ],
)
def test_targets_without_a_match_are_rejected(
    targets: tuple[str, ...], expected: int | None, message: str
) -> None:
    unet = tiny_unet()
    with pytest.raises(TrainError, match=message):
        inject(unet, targets, LowRank(4, 4), expected)
    assert all(p.requires_grad for p in unet.parameters())


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, padding_mode="circular"),
              nn.MultiheadAttention(4, 2).out_proj],
)  # fmt: skip
def test_layers_with_another_forward_are_rejected(layer: nn.Module) -> None:
    module = nn.ModuleDict({"plain": nn.Linear(4, 4), "odd": layer})
    with pytest.raises(TrainError, match="odd cannot be trained"):
        inject(module, ["plain", "odd"], LowRank(2, 2))
    assert type(module["plain"]) is nn.Linear


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("conv_in.lora_B.weight"), "lack 'conv_in.lora_B.weight'"),
        (lambda s: s.update(more=torch.zeros(1)), "no layer for the key 'more'"),
        (lambda s: s.update({"conv_in.lora_B.weight": torch.zeros(16, 3, 1, 1)}), "has the shape"),
        (lambda s: s.update({"conv_in.lora_A.weight": torch.zeros(5, 4, 3, 3)}), "rank 5 does not"),
    ],
)
def test_a_state_that_does_not_fit_is_rejected(change: Callable[[Any], Any], message: str) -> None:
    _, adapter = adapted_unet()
    before = adapter.state(0)
    state = {key: tensor + 1 for key, tensor in before.items()}
    change(state)
    with pytest.raises(TrainError, match=message):
        adapter.load(0, state)
    assert all(torch.equal(tensor, before[key]) for key, tensor in adapter.state(0).items())


def test_rows_that_do_not_fit_the_slots_are_rejected() -> None:
    unet, adapter = adapted_unet(2)
    with pytest.raises(TrainError, match="a batch of 3 rows does not fit 2 slots"):
        predict(unet, batch(0, rows=3))
    adapter.assign(torch.tensor([0, 1]))
    with pytest.raises(TrainError, match="a batch of 4 rows does not fit 2 assigned rows"):
        predict(unet, batch(0, rows=4))


@pytest.mark.parametrize("is_dora", [False, True], ids=["lora", "dora"])
def test_masters_stay_float32_under_bfloat16(is_dora: bool) -> None:
    unet, adapter = adapted_unet(2, is_dora=is_dora)
    exact = losses(unet, batch(0)).sum()
    with torch.autocast("cpu", torch.bfloat16):
        loss = losses(unet, batch(0)).sum()
    loss.backward()
    assert loss.item() == pytest.approx(exact.item(), rel=2e-2)
    assert {(p.dtype, p.grad.dtype) for p in adapter.parameters() if p.grad is not None} == {
        (torch.float32, torch.float32)
    }


def test_a_base_in_16_bits_computes_in_16_bits() -> None:
    unet, adapter = adapted_unet()
    exact = predict(unet, batch(0))
    unet.to(torch.bfloat16)
    for parameter in adapter.parameters():
        parameter.data = parameter.data.float()
    rows = {name: t.bfloat16() if t.is_floating_point() else t for name, t in batch(0).items()}
    output = predict(unet, rows)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), exact, rtol=0.1, atol=0.1)


def test_a_reset_or_load_does_not_recompile() -> None:
    from torch._dynamo.testing import CompileCounter

    module = nn.Sequential(nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 4))
    adapter = inject(module, ["0", "2"], LowRank(2, 2, slots=2))
    counter = CompileCounter()
    compiled = torch.compile(module, backend=counter, fullgraph=True)
    x = torch.ones(4, 4)
    before = compiled(x)
    fill(adapter, 0, seed=1)
    adapter.load(1, adapter.state(0), {"0": 0.5, "2": 2.0})
    assert not torch.equal(compiled(x), before)
    torch.testing.assert_close(compiled(x), module(x))
    assert counter.frame_count == 1
