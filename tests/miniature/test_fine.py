"""The fine detail of the world: lost at 32 pixels, the same in every photograph, named truly."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dbray.miniature import world
from dbray.miniature.captions import caption, fine_caption
from dbray.miniature.pixels.bands import fine_error
from dbray.miniature.world.fine import LETTERS, WEAVES, fine_detail, marks, weave

# Of 64 scenes and their captions, as they were before the world had fine detail.
RENDERS = "5639169bdb28f0250d9c84e2aa06ae6517cce8b90a65a0a5c491c0209f70055d"
CAPTIONS = "9ebfbf4f451b90a8c509f46b921befd08d27ee33299eb6ef6b76ce4fe537f009"


def seed_with(weave_name: str) -> int:
    return next(seed for seed in range(1_000) if fine_detail(seed).weave == weave_name)


def drawn(scene: world.Scene, fine: bool) -> np.ndarray:
    return np.asarray(world.render(scene, fine=fine))[None]


def reduced(images: np.ndarray) -> np.ndarray:
    small = [Image.fromarray(image).resize((32, 32), Image.Resampling.BOX) for image in images]
    return np.stack([np.asarray(image) for image in small]).astype(float)


@pytest.fixture(scope="module")
def scene() -> world.Scene:
    rng = np.random.default_rng(3)
    identity = replace(world.random_identity(rng, "turtle"), pattern="plain")
    return replace(world.random_pose(rng, identity, "snow"), x=0.0, y=0.0, scale=1.0, tilt=0.0)


def test_the_world_without_fine_detail_is_as_it_was():
    scenes = list(itertools.islice(world.scenes(23), 64))
    pixels, words, rng = hashlib.sha256(), hashlib.sha256(), np.random.default_rng(5)
    for one in scenes:
        pixels.update(world.render(one).tobytes())
        words.update(caption(one, rng).encode())
    assert pixels.hexdigest() == RENDERS
    assert words.hexdigest() == CAPTIONS


@pytest.mark.parametrize("name", [name for name in WEAVES if name != "smooth"])
def test_a_weave_is_mostly_lost_at_32_pixels(scene, name):
    woven = replace(scene, identity=replace(scene.identity, pattern_seed=seed_with(name)))
    smooth = replace(scene, identity=replace(scene.identity, pattern_seed=seed_with("smooth")))
    change = (drawn(woven, fine=True) - drawn(smooth, fine=True).astype(float)).mean(axis=3)[0]
    shell = change[30:42, 22:38]  # all of it is body
    small = shell.reshape(6, 2, 8, 2).mean(axis=(1, 3))
    assert np.abs(shell.mean()) > 4.0  # the tone of the body, which a small picture shows
    assert small.var() < 0.25 * shell.var()


def test_fine_detail_is_that_of_the_identity_and_stays_on_it(scene):
    other = replace(scene, place="grass", x=0.05, tilt=5.0)
    assert fine_detail(scene.identity.pattern_seed) == fine_detail(other.identity.pattern_seed)
    changed = np.any(drawn(scene, fine=True) != drawn(scene, fine=False), axis=(0, 3))
    corners = [changed[:8, :8], changed[:8, -8:], changed[-8:, :8], changed[-8:, -8:]]
    assert changed.mean() > 0.02
    assert not any(corner.any() for corner in corners)


def test_details_differ_between_identities():
    found = {fine_detail(seed) for seed in range(300)}
    assert {fine.weave for fine in found} == set(WEAVES)
    assert {fine.letter for fine in found} == set(LETTERS)
    assert {fine.whiskers for fine in found} == {2, 3, 4}


def test_a_letter_can_be_read_on_a_mirrored_object():
    fine = replace(fine_detail(0), letter="l")
    plain, mirrored = (marks(fine, "boot", None, turned) for turned in (False, True))
    centre = plain[0].points.mean(axis=0)
    for left, right in zip(plain[1:], mirrored[1:], strict=True):
        assert np.allclose((left.points - centre)[:, 0].mean(),
                           -(right.points - centre)[:, 0].mean())  # fmt: skip


def test_dark_bodies_have_lighter_weaves():
    fine = fine_detail(seed_with("dots"))
    assert sum(weave(fine, (30, 30, 30))[0].fill) > 90
    assert sum(weave(fine, (240, 240, 240))[0].fill) < 720


def test_captions_name_only_what_is_drawn():
    rng = np.random.default_rng(1)
    named = 0
    for one in itertools.islice(world.scenes(5), 400):
        fine, words = fine_detail(one.identity.pattern_seed), fine_caption(one, rng)
        for name in WEAVES[1:]:
            assert f"with {name}" not in words.replace("fine ", "") or fine.weave == name
        if "letter" in words:
            assert words.split("letter ")[1][0] == fine.letter
            assert one.identity.class_noun in world.OBJECTS
        named += "letter" in words or "with fine" in words or "pinstripes" in words
    assert 80 < named < 180


def test_the_error_of_the_fine_band_is_a_share():
    rng = np.random.default_rng(0)
    truth = np.stack([drawn(one, fine=True)[0] for one in itertools.islice(world.scenes(9), 3)])
    blurred = np.kron(reduced(truth), np.ones((1, 2, 2, 1)))
    assert np.allclose(fine_error(truth, truth), 0.0)
    flat = np.full_like(truth, 128)
    assert np.allclose(fine_error(flat, truth), 1.0)
    assert (fine_error(rng.normal(128, 60, truth.shape), truth) > 1.5).all()
    assert (fine_error(blurred, truth) > 0.5).all()
