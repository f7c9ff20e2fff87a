"""Packing: what cannot be packed, and how many subjects `auto` trains together."""

from __future__ import annotations

import pytest

from dbray.planning.packing import choose, evened, is_packed, obstacle, sizes_to_try
from dbray.spec.recipe import Recipe
from dbray.spec.resources import Resources

LORA = Recipe(method={"kind": "lora", "rank": 4})
PACKED = Resources(pack=4)


@pytest.mark.parametrize(("recipe", "resources", "reason"), [
    (Recipe(), PACKED, "change the base's own weights"),
    (Recipe(identifier_rate=0.1), PACKED, "change the base's own weights"),
    (Recipe(method="lora", crop="bucket"), PACKED, "several sizes"),
    (LORA, Resources(pack=4, gpus_per_subject=2), "one device"),
    (LORA, Resources(pack=4, zero_stage=1), "one device"),
])  # fmt: skip
def test_what_cannot_be_packed_is_refused_with_the_reason(recipe, resources, reason):
    found = obstacle(recipe, resources)
    assert found is not None
    assert reason in found[0]
    assert not is_packed(recipe, resources)


@pytest.mark.parametrize("method", ["lora", "pivotal", "textual_inversion"])
def test_methods_that_share_the_base_can_be_packed_on_one_device(method):
    recipe = Recipe(method=method)
    assert obstacle(recipe, PACKED) is None
    assert is_packed(recipe, PACKED)
    assert not is_packed(recipe, Resources())


@pytest.mark.parametrize(("seconds", "chosen", "num_measured"), [
    ([1.0, 0.8, 0.7, 0.69, 0.1], 4, 4),  # the fourth gains too little: no other is tried
    ([1.0, 1.1, 0.5], 1, 2),
    ([1.0, 0.8, 0.6], 4, 3),
    ([1.0], 1, 1),
])  # fmt: skip
def test_slots_are_doubled_while_it_gains_more_than_five_percent(seconds, chosen, num_measured):
    measured = iter(zip((1, 2, 4, 8, 16), seconds, strict=False))
    found, table = choose(measured)
    assert found == chosen
    assert len(table) == num_measured


@pytest.mark.parametrize(("num_slots", "num_subjects", "num_lanes", "expected"), [
    (8, 32, 2, 8), (8, 20, 2, 5), (8, 6, 2, 3), (8, 1, 1, 1), (8, 1000, 2, 8), (4, 9, 1, 3),
])  # fmt: skip
def test_fewer_slots_stay_empty_at_the_end(num_slots, num_subjects, num_lanes, expected):
    assert evened(num_slots, num_subjects, num_lanes) == expected


def test_only_slots_that_are_filled_and_fit_the_memory_are_tried():
    assert sizes_to_try(100, lambda num_slots: 10 * num_slots, 45) == (1, 2, 4)
    assert sizes_to_try(100, lambda num_slots: 10 * num_slots, 5) == (1,)
    assert sizes_to_try(100, lambda num_slots: 10 * num_slots, None)[-1] == 32
    assert sizes_to_try(3, lambda num_slots: 10 * num_slots, None) == (1, 2, 4)
    assert sizes_to_try(1, lambda num_slots: 10 * num_slots, None) == (1,)
