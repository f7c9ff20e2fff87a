"""Scores of embeddings whose cosines are known."""

from __future__ import annotations

import math

import pytest
import torch

from dbray.scores import figures


def rows(*degrees: float) -> torch.Tensor:
    """Rows of length 1 in the plane, by their angles."""
    angles = torch.tensor(degrees) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def cosine(degrees: float) -> float:
    return math.cos(math.radians(degrees))


def test_identity_is_the_mean_cosine_of_all_pairs():
    assert figures.identity(rows(0, 60), rows(0)) == pytest.approx((1 + 0.5) / 2)


def test_the_ceiling_compares_different_photographs_only():
    expected = (2 * cosine(30) + cosine(60)) / 3
    assert figures.ceiling(rows(0, 30, 60)) == pytest.approx(expected)
    assert figures.ceiling(rows(45)) == 1.0


def test_the_margin_counts_images_that_are_nearest_to_their_own_subject():
    photographs = {"rex": rows(0, 10), "max": rows(80, 90)}
    nearest, precision = figures.margin(rows(5, 20, 70), "rex", photographs)
    assert nearest == pytest.approx(2 / 3)
    # The last image ranks both photographs of max first: (1/3 + 2/4) / 2.
    assert precision == pytest.approx((1 + 1 + (1 / 3 + 2 / 4) / 2) / 3)


def test_the_margin_does_not_depend_on_the_order_of_subjects():
    photographs = {"rex": rows(0, 10), "max": rows(80, 90), "ada": rows(40)}
    reverse = dict(reversed(photographs.items()))
    generated = rows(5, 33, 70)
    assert figures.margin(generated, "ada", photographs) == pytest.approx(
        figures.margin(generated, "ada", reverse)
    )


def test_prompt_fidelity_pairs_each_image_with_its_own_prompt():
    assert figures.prompt_fidelity(rows(0, 90), rows(0, 90)) == pytest.approx(1.0)
    assert figures.prompt_fidelity(rows(0, 90), rows(90, 0)) == pytest.approx(0.0, abs=1e-6)


def test_an_image_follows_its_prompt_if_no_other_is_nearer():
    prompts = rows(0, 0, 90, 90)
    assert figures.followed(rows(10, 30, 80, 60), prompts) == 1.0
    assert figures.followed(rows(10, 10, 10, 10), prompts) == 0.5
    assert figures.followed(rows(80, 80, 170, 170), prompts) == 0.5  # less, for all prompts alike
    assert figures.followed(rows(0, 40), rows(5, 5)) is None


def test_drift_is_0_for_the_base_itself():
    assert figures.drift(rows(0, 50), rows(0, 50)) == pytest.approx(0.0, abs=1e-6)
    assert figures.drift(rows(60, 110), rows(0, 50)) == pytest.approx(0.5)


def test_diversity_compares_images_of_one_prompt_only():
    assert figures.diversity([rows(0, 0), rows(90, 90)]) == pytest.approx(0.0, abs=1e-6)
    assert figures.diversity([rows(0, 60), rows(0, 90)]) == pytest.approx((0.5 + 1.0) / 2)


def test_a_copy_is_much_nearer_to_a_photograph_than_photographs_are_to_each_other():
    photographs = rows(0, 40, 90)  # the nearest two: 1 - cos 40 degrees is 0.23
    assert figures.copies(rows(0, 41, 120, 180), photographs) == pytest.approx(2 / 4)


def test_the_ceiling_of_the_margin_leaves_each_photograph_out():
    # Without itself, the photograph at 60 degrees is nearest to max.
    photographs = {"rex": rows(0, 10, 60), "max": rows(60, 80)}
    assert figures.margin_ceiling("rex", photographs) == pytest.approx(2 / 3)
    assert figures.margin_ceiling("ada", {"ada": rows(0), "max": rows(1)}) == 1.0


def test_a_single_photograph_has_no_copies():
    assert figures.copies(rows(0, 1), rows(0)) == 0.0
