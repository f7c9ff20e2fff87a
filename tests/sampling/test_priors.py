"""Class images: the same bits for any number of actors and kills."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from kit.worlds import make_class_images

from dbray import bases
from dbray.bases.generate import Sampling, generate
from dbray.errors import BaseError, DigestMismatch, LaneLost, StoreError
from dbray.records.prior_reuse import copy_part, full_parts_elsewhere
from dbray.records.prior_sets import (
    PriorPlan,
    broken_files,
    encode_part,
    is_made,
    load_images,
    missing_parts,
    part_name,
)
from dbray.sampling.pool import SamplingActor, SamplingPool, sample
from dbray.sampling.priors import PartActor, make_priors
from dbray.spec.sections import Prior
from dbray.storage.committed import Committed
from dbray.storage.store import COMMITTED, Store
from dbray.subjects.images import decode_png
from dbray.training.losses import seed_of

PRIOR = Prior(count=40, sampler="ddpm", steps=2, guidance=2.0, seed=3)
NUM_PARTS = 3


@pytest.fixture(scope="module")
def base(tiny_base):
    return bases.resolve(str(tiny_base))


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(str(tmp_path / "storage"))


def plans_of(base: bases.Base, *nouns: str, prior: Prior = PRIOR) -> list[PriorPlan]:
    return [PriorPlan(base.digest, noun, prior) for noun in nouns]


def files_of(store: Store, plan: PriorPlan) -> dict[str, bytes]:
    return {name: Committed(store, plan.folder).read(name) for name in plan.files}


@pytest.fixture(scope="module")
def made(base, ray_session, tmp_path_factory):
    """The sets of two nouns, made by one actor: (store, plans, report, progress)."""
    store = Store(str(tmp_path_factory.mktemp("made")))
    plans = plans_of(base, "dog", "cat")
    progress = []
    report = make_priors(
        store, base, plans, SamplingPool(num_actors=1), lambda *at: progress.append(at)
    )
    return store, plans, report, progress


def copy_of(store: Store, target: Path) -> Store:
    shutil.copytree(store.uri, target)
    return Store(str(target))


def test_the_digest_covers_all_inputs_of_the_images(base) -> None:
    [plan] = plans_of(base, "dog")
    others = [
        PriorPlan("0" * 64, "dog", PRIOR),
        PriorPlan(base.digest, "cat", PRIOR),
        PriorPlan(base.digest, "dog", PRIOR.model_copy(update={"seed": 4})),
        PriorPlan(base.digest, "dog", PRIOR.model_copy(update={"count": 41})),
    ]
    assert plan.digest == plans_of(base, "dog")[0].digest
    assert len({plan.digest, *(other.digest for other in others)}) == 5
    assert plan.prompt == "a dog"
    assert [list(plan.indices(part))[::15] for part in range(3)] == [[0, 15], [16, 31], [32]]
    assert plan.indices(2) == range(32, 40)


def test_a_part_without_a_marker_is_verified_by_its_checksums(base, store) -> None:
    [plan] = plans_of(base, "dog")
    pngs = [b"png" * 100] * 16
    good = encode_part(range(16), [1] * 16, pngs)
    middle = good.index(b"pngpng") + 700
    flipped = good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :]
    store.write_bytes(f"{plan.folder}/{part_name(0)}", good)
    store.write_bytes(f"{plan.folder}/{part_name(1)}", good)  # the images of another part
    assert missing_parts(store, plan) == [1, 2]
    for bad in (flipped, good[:-20], b""):
        store.write_bytes(f"{plan.folder}/{part_name(0)}", bad)
        assert missing_parts(store, plan) == [0, 1, 2]


def test_load_rejects_unpublished_sets(base, store) -> None:
    [plan] = plans_of(base, "dog")
    store.write_bytes(f"{plan.folder}/{part_name(0)}", encode_part([0], [1], [b"png"]))
    assert not is_made(store, plan)
    with pytest.raises(StoreError):
        load_images(store, plan.digest)


@pytest.mark.ray
def test_class_images_equal_those_of_generate(made, base) -> None:
    store, plans, report, progress = made
    for plan in plans:
        assert is_made(store, plan)
        part = store.local_path(f"{plan.folder}/{part_name(2)}")
        table = pq.read_table(part)
        assert [str(field.type) for field in table.schema] == ["int32", "int64", "binary"]
        assert table["index"].to_pylist() == list(range(32, 40))
        seeds = [seed_of(PRIOR.seed, plan.class_noun, index) for index in range(32, 40)]
        assert table["seed"].to_pylist() == seeds
        backbone = bases.load(base)
        prompts = [f"a {plan.class_noun}"] * 8
        expected = generate(backbone, prompts, seeds, Sampling("ddpm", 2, 2.0))
        images = load_images(store, plan.digest)
        assert images.shape == (40, 32, 32, 3)
        assert (images[32:] == expected).all()
        assert (decode_png(table["png"][0].as_py()) == images[32]).all()
    assert not (load_images(store, plans[0].digest) == load_images(store, plans[1].digest)).all()
    description = store.read_json(f"{plans[0].folder}/prior.json")
    assert description["class_noun"] == "dog"
    assert description["base_digest"] == base.digest
    assert Prior.model_validate(description["prior"]) == PRIOR
    assert report.num_images == 80
    assert report.images_per_second == pytest.approx(80 / report.seconds)
    assert progress[0] == (0, 80)
    assert progress[-1] == (80, 80)
    assert len(progress) == 1 + 2 * NUM_PARTS


@pytest.mark.ray
def test_two_actors_make_the_same_bits_and_finished_sets_are_kept(made, base, store) -> None:
    _, plans, _, _ = made
    again = [*plans, *plans_of(base, "dog")]  # two subjects of one noun share its set
    report = make_priors(store, base, again, SamplingPool(num_actors=2))
    assert report.num_images == 80
    assert len(report.digests) == len(store.names("priors")) == 2
    for plan in plans:
        assert files_of(store, plan) == files_of(made[0], plan)
    kept = make_priors(store, base, again, SamplingPool(num_actors=2))
    assert (kept.num_images, kept.images_per_second) == (0, 0.0)


@pytest.mark.ray
@pytest.mark.parametrize(("count", "num_sampled"), [(56, 24), (32, 0)])
def test_another_count_samples_only_missing_parts(made, base, tmp_path, count, num_sampled) -> None:
    store = copy_of(made[0], tmp_path / "storage")
    prior = PRIOR.model_copy(update={"count": count})
    [plan] = plans_of(base, "dog", prior=prior)
    report = make_priors(store, base, [plan], SamplingPool(num_actors=1))
    assert report.num_images == num_sampled
    assert is_made(store, made[1][0])
    fresh = Store(str(tmp_path / "fresh"))
    make_class_images(fresh, base, [plan])
    assert files_of(store, plan) == files_of(fresh, plan)


def test_sets_with_other_inputs_share_no_parts(made, base, tmp_path) -> None:
    store = copy_of(made[0], tmp_path / "storage")
    larger = PRIOR.model_copy(update={"count": 80})
    [plan] = plans_of(base, "dog", prior=larger)
    others = [
        *plans_of(base, "clock", prior=larger),
        *plans_of(base, "dog", prior=larger.model_copy(update={"seed": 4})),
        dataclasses.replace(plan, base_digest="0" * 64),
    ]
    found = full_parts_elsewhere(store, [plan, *others])
    assert found[plan] == dict.fromkeys((0, 1), made[1][0].folder)
    assert not any(found[other] for other in others)
    (Path(store.uri) / made[1][0].folder / part_name(1)).write_bytes(b"damaged")
    assert copy_part(store, plan, 0, made[1][0].folder)
    assert not copy_part(store, plan, 1, made[1][0].folder)
    assert missing_parts(store, plan) == [1, 2, 3, 4]


@pytest.mark.ray
def test_interrupted_and_corrupt_sets_are_repaired_part_by_part(made, base, tmp_path) -> None:
    plans = made[1]
    store = copy_of(made[0], tmp_path / "storage")
    interrupted, rotten = plans
    store.remove(f"{interrupted.folder}/{COMMITTED}")
    store.remove(f"{interrupted.folder}/{part_name(1)}")
    path = store.local_path(f"{rotten.folder}/{part_name(2)}")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert broken_files(store, rotten) == [part_name(2)]
    with pytest.raises(DigestMismatch):
        load_images(store, rotten.digest)
    kept = {plan.folder: store.local_path(f"{plan.folder}/{part_name(0)}").stat().st_mtime_ns
            for plan in plans}  # fmt: skip
    report = make_priors(store, base, plans, SamplingPool(num_actors=1))
    assert report.num_images == 16 + 8
    for plan in plans:
        first = store.local_path(f"{plan.folder}/{part_name(0)}")
        assert first.stat().st_mtime_ns == kept[plan.folder]
        assert files_of(store, plan) == files_of(made[0], plan)


@pytest.mark.ray
def test_a_lost_marker_or_description_needs_no_sampling(made, base, tmp_path) -> None:
    plans = made[1]
    store = copy_of(made[0], tmp_path / "storage")
    store.write_bytes(f"{plans[0].folder}/{COMMITTED}", b"{")
    store.remove(f"{plans[1].folder}/prior.json")
    assert not is_made(store, plans[0])
    assert not is_made(store, plans[1])
    assert make_priors(store, base, plans).num_images == 0
    for plan in plans:
        assert files_of(store, plan) == files_of(made[0], plan)


@pytest.mark.ray
def test_sampling_ends_after_enough_sets_and_continues_with_the_others(made, base, store) -> None:
    dog, cat = made[1]
    pool, asked = SamplingPool(num_actors=1), []

    def is_enough(done: int, total: int) -> bool:
        asked.append((done, total))
        return True

    first = make_priors(store, base, [dog, cat], pool, is_enough=is_enough)
    assert asked == [(40, 80)]
    assert (first.num_images, first.digests) == (40, (dog.digest,))
    assert is_made(store, dog)
    assert not is_made(store, cat)
    both = first + make_priors(store, base, [cat], pool)
    assert both.digests == (dog.digest, cat.digest)
    assert both.num_images <= 80  # the first call may have left a part of the second set
    for plan in (dog, cat):
        assert files_of(store, plan) == files_of(made[0], plan)


class TellingActor(PartActor):
    """Writes its process id to a file, and starts parts only when allowed."""

    def make(self, task):
        folder = Path(self._store.uri)
        (folder / f"pid-{os.getpid()}").touch()
        if task["part"] == 1 and not (folder / "killed").exists():
            time.sleep(600)  # this process is killed here
        return super().make(task)


@pytest.mark.ray
def test_a_killed_actor_is_replaced_without_effect_on_the_images(
    made, base, store, monkeypatch
) -> None:
    [plan, _] = made[1]
    folder = Path(store.uri)
    folder.mkdir()
    monkeypatch.setattr("dbray.sampling.priors.PartActor", TellingActor)
    victims = []

    def kill() -> None:
        while not (pids := list(folder.glob("pid-*"))):
            time.sleep(0.05)
        (folder / "killed").touch()
        victims.append(int(pids[0].name.removeprefix("pid-")))
        os.kill(victims[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    report = make_priors(store, base, [plan], SamplingPool(num_actors=1))
    killer.join()
    survivors = {int(file.name.removeprefix("pid-")) for file in folder.glob("pid-*")}
    assert survivors - set(victims)  # another process finished the work
    assert report.num_images == 40
    assert files_of(store, plan) == files_of(made[0], plan)


class FlakyActor(PartActor):
    """Fails with a storage error once for every part."""

    def make(self, task):
        seen = Path(self._store.uri) / f"seen-{task['part']}"
        if not seen.exists():
            seen.touch()
            raise StoreError("storage is away")
        return super().make(task)


class BreakingActor(PartActor):
    """The fake device of the first process breaks: all its later calls fail."""

    def make(self, task):
        broken = Path(self._store.uri) / "broken"
        if not broken.exists():
            broken.write_text(str(os.getpid()))
        if broken.read_text() == str(os.getpid()):
            raise torch.AcceleratorError("CUDA error: unspecified launch failure")
        return super().make(task)


@pytest.mark.ray
@pytest.mark.parametrize("actor", [pytest.param(FlakyActor, marks=pytest.mark.slow), BreakingActor])
def test_temporary_and_device_failures_are_retried(made, base, store, monkeypatch, actor) -> None:
    [plan, _] = made[1]
    Path(store.uri).mkdir()
    monkeypatch.setattr("dbray.sampling.priors.PartActor", actor)
    assert make_priors(store, base, [plan], SamplingPool(num_actors=1)).num_images == 40
    assert files_of(store, plan) == files_of(made[0], plan)


@pytest.mark.ray
def test_of_two_concurrent_jobs_the_first_ones_parts_stay(made, base, store) -> None:
    [plan, _] = made[1]
    written = {}

    def overtake(done: int, total: int) -> None:
        if (done, total) == (0, 40):  # the second job has listed missing parts; run the first
            make_class_images(store, base, [plan])
            written.update(times_of(store, plan))

    make_priors(store, base, [plan], SamplingPool(num_actors=1), overtake)
    assert times_of(store, plan) == written
    assert files_of(store, plan) == files_of(made[0], plan)


def times_of(store: Store, plan: PriorPlan) -> dict[str, int]:
    """Return the time of writing of each part."""
    names = [part_name(part) for part in range(plan.num_parts)]
    return {n: store.local_path(f"{plan.folder}/{n}").stat().st_mtime_ns for n in names}


class Overtaken(Store):
    """Another job writes the missing parts and publishes as soon as this one has listed them."""

    missing: dict[str, bytes]

    def names(self, path: str = "") -> list[str]:
        found = super().names(path)
        if path == "priors":
            return found
        for name, data in self.missing.items():
            self.write_bytes(f"{path}/{name}", data)
        self.seal(path, [*found, *self.missing])
        return found


@pytest.mark.ray
def test_a_set_published_by_another_job_stays_published(made, base, tmp_path) -> None:
    [plan, _] = made[1]
    store = Overtaken(copy_of(made[0], tmp_path / "storage").uri)
    last = part_name(NUM_PARTS - 1)
    store.missing = {last: files_of(store, plan)[last]}
    for name in (last, COMMITTED):
        store.remove(f"{plan.folder}/{name}")

    def stop(done: int, total: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        make_priors(store, base, [plan], on_progress=stop)
    assert is_made(store, plan)


class DyingActor(SamplingActor):
    """Dies in every task."""

    def make(self, task):
        os.kill(os.getpid(), signal.SIGKILL)
        return {}


@pytest.mark.ray
def test_tasks_that_kill_their_process_are_given_up(base, ray_session) -> None:
    with pytest.raises(LaneLost, match="died more than"):
        list(sample(DyingActor, (base, 1), [{"part": 0}], SamplingPool(num_actors=1)))


@pytest.mark.ray
def test_errors_of_actors_reach_the_driver_unchanged(base, store, ray_session, tmp_path) -> None:
    gone = dataclasses.replace(base, folder=tmp_path / "gone")
    with pytest.raises(BaseError, match=r"gone .*every node needs it at the same path"):
        make_priors(store, gone, plans_of(base, "dog"), SamplingPool(num_actors=1))
    with pytest.raises(ValueError, match="a base other than"):
        make_priors(store, base, [PriorPlan("0" * 64, "dog", PRIOR)])
