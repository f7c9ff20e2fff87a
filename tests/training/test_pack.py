"""Packs: a subject's weights depend on the number of slots, and on nothing else of the pack."""

from __future__ import annotations

import pytest
import torch
from kit.packs import World, gap, same
from kit.training import CPU, prediction_of, recipe_of
from torch import Tensor, nn

from dbray import bases
from dbray.spec.recipe import Recipe
from dbray.spec.resources import Resources
from dbray.training.data import Latents
from dbray.training.loop import Course, take_step
from dbray.training.pack import Packed, Slots

EVERYWHERE = ["attention", "feed_forward", "convolutions"]
RECIPES = {
    "lora": recipe_of({"kind": "lora", "rank": 4}),
    "dora": recipe_of({"kind": "lora", "rank": 4, "targets": EVERYWHERE, "dora": True}),
    "text encoder": recipe_of({"kind": "lora", "rank": 4}, train_text_encoder=True),
    "pivotal": recipe_of({"kind": "pivotal", "rank": 4}),
    "textual inversion": recipe_of("textual_inversion"),
    "schedules": recipe_of(
        {"kind": "lora", "rank": 4}, ema_decay=0.9, warmup_steps=2, rate_schedule="cosine",
        min_snr_gamma=5.0,
    ),
    "bf16": recipe_of({"kind": "lora", "rank": 4}, precision="bf16"),
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tiny_base):
    return bases.resolve(str(tiny_base))


@pytest.fixture(scope="module", params=RECIPES)
def world(request, base):
    return World(base, RECIPES[request.param], num_slots=3)


def test_neither_company_nor_slot_changes_a_bit(world):
    alone = world.train({0: "rex"})["rex"]
    together = world.train({0: "tom", 1: "ace", 2: "rex"})
    assert same(together["rex"], alone)
    assert not same(together["tom"], alone)


def test_a_slot_is_filled_again_while_others_train(world):
    wanted = {name: world.train({1: name})[name] for name in ("rex", "tom")}
    rex = world.begin(0, "rex")
    world.go_on({0: rex}, num_steps=2)
    world.go_on({0: rex, 2: world.begin(2, "tom")})
    assert same(world.weights(0), wanted["rex"])
    assert same(world.weights(2), wanted["tom"])


def test_a_state_continues_in_another_slot_bit_for_bit(world):
    wanted = world.train({0: "rex"})["rex"]
    course = world.begin(0, "rex")
    world.go_on({0: course}, num_steps=2)
    state, progress = world.pack.engines[0].state(), course.progress()
    world.begin(1, "rex")
    world.pack.engines[1].load_state(state)
    resumed = Course(world.subjects["rex"], world.recipe, world.schedule, resume=progress)
    world.go_on({1: resumed, 0: world.begin(0, "ace")})
    assert same(world.weights(1), wanted)
    assert [point.step for point in resumed.points()] == [1, 2, 3, 4]


def test_a_slot_that_is_not_finite_harms_no_other(world):
    alone = world.train({0: "rex"})["rex"]
    views = world.subjects["tom"].views
    poison = Latents(views.mean_VCHW * float("nan"), views.std_VCHW)
    courses = {0: world.begin(0, "rex"), 1: world.begin(1, "tom", views=poison)}
    for _ in range(world.recipe.steps):
        world.step(courses)
        courses[0].advance()
        courses[1].step += 1  # without reading its loss
    assert same(world.weights(0), alone)
    assert not all(tensor.isfinite().all() for tensor in world.weights(1).values())
    assert same(world.train({1: "rex"})["rex"], alone)


def test_a_subject_without_class_rows_fits_in(world):
    alone = world.train({0: "rex"}, prior=None)["rex"]
    world.go_on({0: world.begin(0, "tom"), 1: world.begin(1, "rex", prior=None)})
    assert same(world.weights(1), alone)


@pytest.mark.parametrize("method", ["lora", "pivotal"])
def test_every_number_of_slots_gives_the_same_but_for_rounding(base, method):
    found = {}
    for num_slots in (1, 2, 4):
        world = World(base, RECIPES[method], num_slots)
        world.begin(0, "rex")
        begun = world.weights(0)
        found[num_slots] = world.train({0: "rex"})["rex"]
    assert max(gap(found[1], found[num_slots], begun) for num_slots in (2, 4)) < 1e-3


@pytest.mark.parametrize("method", ["lora", "pivotal"])
def test_a_slot_steps_on_its_own_too(base, method):
    """A slot is an engine: it needs no pack's step."""
    world = World(base, RECIPES[method], num_slots=2)
    course = world.begin(0, "rex")
    world.go_on({0: course}, num_steps=1)
    wanted, course = world.weights(0), world.begin(1, "rex")
    begun = world.weights(1)
    take_step(world.pack.engines[1], course)
    world.method.after_step(world.pack.engines[1])
    assert gap(world.weights(1), wanted, begun) < 1e-3
    assert same(world.weights(0), wanted)


def test_slots_publish_their_own_tokens_and_factors(base):
    world = World(base, RECIPES["pivotal"], num_slots=2)
    world.train({0: "rex", 1: "tom"})
    rex, tom = (
        world.method.publish(world.network, world.weights(slot), world.recipe, slot)
        for slot in (0, 1)
    )
    world.train({1: "rex"})
    assert world.method.publish(world.network, world.weights(1), world.recipe, 1) == rex
    assert rex.keys() == tom.keys() == {"lora.safetensors", "tokens.safetensors"}
    assert all(rex[name] != tom[name] for name in rex)


class Products(nn.Module):
    """Stacked weights of three slots, and one that stays as it is."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        weight = torch.randn(1, 4, 5, generator=draw).repeat(3, 1, 1)
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(torch.ones(3, 5))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.einsum("si,sio->so", inputs, self.weight) * self.bias


OPTIMISER = Recipe(steps=6, learning_rate=0.1, warmup_steps=2, rate_schedule="linear",
                   max_grad_norm=0.5, weight_decay=0.1)  # fmt: skip


def one_loss(outputs: Tensor, slot: int, step: int) -> Tensor:
    """A loss whose gradient is far above the limit in one slot, and below it in the others."""
    target = torch.full_like(outputs, float(step))
    return (100.0 if slot == 1 else 0.01) * (outputs - target).square().mean()


def plain(slot: int, num_steps: int) -> dict[str, Tensor]:
    """Train one slot by torch's own AdamW in a plain loop."""
    module = Products()
    shares = {
        name: nn.Parameter(p.detach()[slot : slot + 1].clone())
        for name, p in module.named_parameters()
    }
    optimizer = torch.optim.AdamW(shares.values(), lr=0.1, weight_decay=0.1)
    for step in range(num_steps):
        optimizer.param_groups[0]["lr"] = 0.1 * [0.5, 1, 1, 0.75, 0.5, 0.25][step]
        outputs = torch.einsum("i,io->o", torch.ones(4), shares["weight"][0]) * shares["bias"][0]
        optimizer.zero_grad()
        one_loss(outputs, slot, step).backward()
        torch.nn.utils.clip_grad_norm_(shares.values(), 0.5)
        optimizer.step()
    return {name: share.detach() for name, share in shares.items()}


def test_every_slot_has_its_own_adamw_clipping_rate_and_number_of_steps():
    pack = Packed(Products(), OPTIMISER, Resources(), CPU, {}, Slots(3, lambda _: None))
    taken = [0, 0, 0]
    for at_work in ([0], [0, 1], [0, 1, 2], [1, 2], [0, 2], [0, 1]):
        outputs = pack.call(None, torch.ones(3, 4))
        pack.descend({slot: one_loss(outputs[slot], slot, taken[slot]) for slot in at_work})
        for slot in at_work:
            taken[slot] += 1
    assert taken == [5, 4, 3]
    for slot, num_steps in enumerate(taken):
        found = pack.engines[slot].weights()
        for name, wanted in plain(slot, num_steps).items():
            torch.testing.assert_close(found[name], wanted)


def test_a_backward_pass_that_breaks_off_leaves_nothing_behind():
    pack = Packed(Products(), OPTIMISER, Resources(), CPU, {}, Slots(3, lambda _: None))
    untouched = [engine.weights() for engine in pack.engines]

    def broken(gradient: Tensor) -> Tensor:
        raise RuntimeError("no")

    outputs = pack.call(None, torch.ones(3, 4))
    bad = one_loss(outputs[1], 1, 0)
    pack.stacked["weight"].register_hook(broken)
    with pytest.raises(RuntimeError, match="no"):
        pack.descend({0: one_loss(outputs[0], 0, 0), 1: bad})
    assert all(parameter.grad is None for parameter in pack.stacked.values())
    assert all(
        same(engine.weights(), before)
        for engine, before in zip(pack.engines, untouched, strict=True)
    )


@pytest.mark.parametrize("name", ["lora", "dora", "text encoder", "pivotal"])
def test_renders_with_one_slot_are_those_of_its_engine_alone(base, name):
    world, alone = World(base, RECIPES[name], 3), World(base, RECIPES[name], 1)
    world.train({0: "tom", 1: "rex", 2: "ace"})
    alone.begin(0, "rex")
    untouched = prediction_of(alone.backbone)
    engine = alone.pack.engines[0]
    engine.assign(world.pack.engines[1].weights())
    with world.pack.alone(1):
        found = prediction_of(world.backbone)
    torch.testing.assert_close(found, prediction_of(alone.backbone), rtol=1e-4, atol=1e-5)
    assert (found - untouched).abs().max() > 1e-3
    world.train({0: "tom", 1: "rex", 2: "ace"})  # its batches belong to all slots again
