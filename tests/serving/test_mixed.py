"""Batches of several low-rank models: a real replica on a tiny base, without Ray around it."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from kit import serving
from kit.low_rank import factors, lora_file, publish, publish_lora, token_file
from pyarrow.fs import LocalFileSystem

from dbray.errors import StoreError
from dbray.method import lora, tokens
from dbray.method.mixing import mixed
from dbray.records.models import Registry
from dbray.serving.messages import Answer, Ask, Refusal, Share
from dbray.serving.options import ServeOptions
from dbray.serving.replica import painter
from dbray.serving.replica.replica import Replica
from dbray.serving.replica.weights import Source
from dbray.storage.store import Store
from dbray.subjects.images import decode_png

pytestmark = pytest.mark.timeout(120)

LEVELS = 2
"""How much a pixel may depend on the batch, of 255: sums are rounded in another order."""
LEVELS_OF_BF16 = 16
LORAS = tuple(f"lora{index}" for index in range(6))
LOW_RANK = (*LORAS, "pivotal", "learnt", "base")


@pytest.fixture(scope="module")
def storage(tmp_path_factory, tiny_base):
    folder = tmp_path_factory.mktemp("registry")
    for index, name in enumerate(LORAS):
        publish_lora(folder, tiny_base, name, index, rank=2 + index)
    learnt = {tokens.FILE: token_file(tiny_base, "zb", 0)}
    publish(folder, tiny_base, "learnt", learnt)
    both = learnt | {lora.FILE: lora_file(factors(tiny_base, 7))}
    publish(folder, tiny_base, "pivotal", both | {tokens.FILE: token_file(tiny_base, "xc", 1)})
    serving.publish(folder, tiny_base, "whole", 1)
    return folder


def make_replica(storage, tiny_base, **options):
    given = {"batch_images": 8, "max_steps": 1000} | options
    return Replica(ServeOptions(registry=str(storage), base=str(tiny_base), device="cpu", **given))


@pytest.fixture(scope="module")
def replica(storage, tiny_base):
    replica = make_replica(storage, tiny_base)
    yield replica
    replica.close()


@pytest.fixture
def batches(monkeypatch):
    """The number of images of each batch that was mixed."""
    found = []

    def watched(denoiser, members, repeats):
        found.append(len(members))
        return mixed(denoiser, members, repeats)

    monkeypatch.setattr(painter, "mixed", watched)
    return found


def ask(storage, model, seed=7, steps=4, **fields):
    """Ask for an image of a model, or of several with their weights: 'a+b*0.5'."""
    shares = []
    for part in () if model == "base" else model.split("+"):
        name, _, weight = part.partition("*")
        record = Registry(Store(str(storage))).find(name)
        shares.append(Share(record.id, record.revision, float(weight or 1)))
    fields = {"tenant": "t", "prompt": "a photo of zb xc dog", "deadline_seconds": 60.0} | fields
    return Ask(tuple(shares), seeds=(seed,), sampling={"steps": steps}, **fields)


def image(answer):
    assert isinstance(answer, Answer), answer
    return decode_png(answer.images[0]).astype(int)


def alone(replica, storage, model, **fields):
    return image(asyncio.run(replica.generate(ask(storage, model, **fields))))


@contextmanager
def paused(replica):
    """Keep the device from taking a batch during a block."""
    entered, opened = threading.Event(), threading.Event()
    errand = lambda: (entered.set(), opened.wait(60))  # noqa: E731 - it has no better name
    replica._painter._errands.append((errand, Future()))
    replica._queue.wake()
    assert entered.wait(60)
    try:
        yield
    finally:
        opened.set()


async def started(replica, *works):
    """Start requests that will be in one batch: the device waits until all are ready."""
    with paused(replica):
        tasks = [asyncio.create_task(work) for work in works]
        while sum(request.ready_since is not None for request in replica._queue._requests) + sum(
            task.done() for task in tasks
        ) < len(tasks):
            await asyncio.sleep(0.01)
    return tasks


def together(replica, asks):
    """Serve requests in one batch."""

    async def run():
        return await asyncio.gather(*await started(replica, *map(replica.generate, asks)))

    return asyncio.run(run())


@pytest.mark.parametrize("size", [2, 4, 8])
def test_an_image_does_not_depend_on_its_company(replica, storage, batches, size):
    models = LOW_RANK[-size:] if size < 8 else LOW_RANK[1:]
    asks = [ask(storage, model, seed) for seed, model in enumerate(models)]
    mixed_images = [image(answer) for answer in together(replica, asks)]
    assert batches == [size]
    for seed, (model, drawn) in enumerate(zip(models, mixed_images, strict=True)):
        expected = alone(replica, storage, model, seed=seed)
        assert np.abs(drawn - expected).max() <= LEVELS, model
        assert (
            model == "base" or np.abs(drawn - alone(replica, storage, "base", seed=seed)).max() > 8
        )


def test_in_a_batch_of_the_same_size_an_image_is_the_same_bit_for_bit(replica, storage, batches):
    def drawn(*company):
        asks = [ask(storage, name, seed) for seed, name in enumerate(("lora3", *company))]
        return together(replica, asks)[0].images

    first = drawn("lora0", "base", "pivotal")
    assert drawn("lora2", "lora1", "learnt") == first
    assert batches == [4, 4]


def test_requests_that_come_while_a_mixed_batch_is_drawn_are_mixed_next(
    replica, storage, batches, monkeypatch
):
    entered, opened, real = threading.Event(), threading.Event(), replica._backbone.denoise

    def denoise(*given):
        entered.set()
        assert opened.wait(60)
        return real(*given)

    monkeypatch.setattr(replica._backbone, "denoise", denoise)

    async def run():
        first = await started(replica, *(replica.generate(ask(storage, x)) for x in LORAS[:2]))
        assert await asyncio.to_thread(entered.wait, 60)
        later = [asyncio.create_task(replica.generate(ask(storage, x))) for x in LORAS[2:5]]
        while sum(r.ready_since is not None for r in replica._queue._requests) < 5:
            await asyncio.sleep(0.01)
        opened.set()
        await asyncio.gather(*first, *later)

    asyncio.run(run())
    assert batches == [2, 3]


def test_images_of_one_model_are_drawn_with_merged_weights(replica, storage, batches):
    asks = [ask(storage, "lora0", seed) for seed in range(8)]
    answers = together(replica, [*asks, ask(storage, "lora1")])
    assert all(isinstance(answer, Answer) for answer in answers)
    assert batches == []


def test_in_bf16_an_image_is_the_same_alone_and_in_a_mixed_batch(storage, tiny_base, batches):
    replica = make_replica(storage, tiny_base, precision="bf16")
    asks = [ask(storage, name, steps=20) for name in ("lora0", "lora1", "pivotal", "base")]
    answers = together(replica, asks)
    assert batches == [4]
    for one, answer in zip(asks, answers, strict=True):
        solo = image(asyncio.run(replica.generate(one)))
        assert np.abs(image(answer) - solo).max() <= LEVELS_OF_BF16
    assert batches == [4, 1, 1, 1]  # low-rank models are not merged in bf16
    replica.close()


def test_whole_models_are_drawn_alone(replica, storage, batches):
    answers = together(replica, [ask(storage, name) for name in ("lora0", "whole", "lora1")])
    assert batches == [2]
    for name, answer in zip(("lora0", "whole", "lora1"), answers, strict=True):
        assert np.abs(image(answer) - alone(replica, storage, name)).max() <= LEVELS


def test_mixing_can_be_switched_off(storage, tiny_base, batches):
    replica = make_replica(storage, tiny_base, mix=False)
    answers = together(replica, [ask(storage, name) for name in LORAS[:3]])
    assert all(isinstance(answer, Answer) for answer in answers)
    assert batches == []
    replica.close()


def test_after_a_mixed_batch_every_model_draws_the_same_bytes(replica, storage):
    names = ("base", "lora1", "pivotal", "whole")
    before = [asyncio.run(replica.generate(ask(storage, name))).images for name in names]
    together(replica, [ask(storage, name) for name in LOW_RANK[:4]])
    after = [asyncio.run(replica.generate(ask(storage, name))).images for name in names]
    assert after == before


def damage(storage, name):
    """Change one bit of a model's factors."""
    [file] = Path(storage, "models", name).glob("*/lora.safetensors")
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def test_a_damaged_model_fails_alone(storage, tiny_base, batches, monkeypatch):
    publish_lora(storage, tiny_base, "damaged", 20)
    damage(storage, "damaged")
    drawn, verify = threading.Event(), Source.verify

    def late(self, key, value):
        assert not key.startswith("damaged") or drawn.wait(30)
        verify(self, key, value)

    monkeypatch.setattr(Source, "verify", late)
    replica = make_replica(storage, tiny_base)
    real = replica._backbone.decode

    def decode(latents):
        drawn.set()  # only now the damage is found
        return real(latents)

    monkeypatch.setattr(replica._backbone, "decode", decode)
    names = ("lora0", "damaged", "lora1")
    first, damaged, last = together(replica, [ask(storage, name) for name in names])
    assert batches == [3]
    assert (damaged.status, damaged.code) == (500, "model_unusable")
    for name, answer in (("lora0", first), ("lora1", last)):
        assert np.abs(image(answer) - alone(replica, storage, name)).max() <= LEVELS
    replica.close()


def test_a_model_whose_tokens_cannot_be_written_fails_alone(
    storage, tiny_base, batches, monkeypatch
):
    replica = make_replica(storage, tiny_base)
    put = replica._backbone.resident.put

    def failing(weights):
        if weights is not None:
            raise StoreError("the memory is not there")
        put(weights)

    monkeypatch.setattr(replica._backbone.resident, "put", failing)
    answers = together(replica, [ask(storage, name) for name in ("lora0", "pivotal", "lora1")])
    assert [isinstance(answer, Answer) for answer in answers] == [True, False, True]
    assert answers[1].code == "storage_unavailable"
    assert batches == [2]
    replica.close()


def test_a_takedown_while_a_mixed_batch_is_drawn_ends_its_own_requests(storage, tiny_base, batches):
    publish_lora(storage, tiny_base, "doomed", 21)
    replica = make_replica(storage, tiny_base)

    async def run():
        names = ("lora0", "doomed", "lora1", "lora2+doomed*0.5")
        asks = [ask(storage, name, steps=100) for name in names]
        tasks = await started(replica, *map(replica.generate, asks))
        while not batches:
            await asyncio.sleep(0.01)
        await replica.forget(Registry(Store(str(storage))).remove("doomed"))
        return await asyncio.gather(*tasks), await replica.figures()

    answers, figures = asyncio.run(run())
    assert [isinstance(answer, Answer) for answer in answers] == [True, False, True, False]
    assert {answer.status for answer in answers if isinstance(answer, Refusal)} == {404}
    assert not any("doomed" in key for keys in figures["keys"].values() for key in keys)
    replica.close()


def test_a_disconnected_caller_does_not_affect_a_mixed_batch(replica, storage, batches):
    async def run():
        asks = [ask(storage, name, steps=50) for name in LORAS[:2]]
        stay, leave = await started(replica, *map(replica.generate, asks))
        while not batches:
            await asyncio.sleep(0.01)
        leave.cancel()
        return await stay

    assert image(asyncio.run(run())).any()
    assert batches == [2]


def test_more_cold_models_than_are_loaded_at_once_share_a_batch(storage, tiny_base, batches):
    replica = make_replica(storage, tiny_base)
    replica._loads._count = 1
    answers = together(replica, [ask(storage, name) for name in LORAS])
    assert {answer.begun.source for answer in answers} == {"disk"}
    assert batches == [len(LORAS)]
    replica.close()


def test_the_tiers_count_the_bytes_of_factors(storage, tiny_base):
    replica = make_replica(storage, tiny_base)
    alone(replica, storage, "lora3")

    async def held():
        async with replica._loads.using(ask(storage, "lora3").key, lambda: (0.0, 0.0)) as hold:
            await hold.landed()
        return await replica.figures()

    figures = asyncio.run(held())
    [file] = Path(storage, "models", "lora3").glob("*/lora.safetensors")
    for tier in ("ram", "device"):
        assert 0.5 * file.stat().st_size < figures["bytes"][tier] <= file.stat().st_size
    replica.close()


def test_models_are_added_up_by_weight(replica, storage, batches):
    both = alone(replica, storage, "lora0+lora1")
    for name in ("lora0", "lora1", "lora0+lora1*0.5", "base"):
        assert np.abs(both - alone(replica, storage, name)).max() > 8, name
    swapped = alone(replica, storage, "lora1+lora0")
    assert np.abs(both - swapped).max() <= LEVELS
    assert (
        np.abs(alone(replica, storage, "lora0+lora1*0.0") - alone(replica, storage, "lora0")).max()
        <= LEVELS
    )
    assert (
        np.abs(alone(replica, storage, "lora0*0.0") - alone(replica, storage, "base")).max()
        <= LEVELS
    )
    assert batches == []
    answers = together(replica, [ask(storage, name) for name in ("lora0+lora1", "lora2", "base")])
    assert batches == [3]
    assert np.abs(image(answers[0]) - both).max() <= LEVELS


def test_a_sum_with_a_whole_model_is_refused(replica, storage):
    refusal = asyncio.run(replica.generate(ask(storage, "lora0+whole")))
    assert isinstance(refusal, Refusal)
    assert refusal.code == "model_unusable"


def test_partial_images_of_a_mixed_batch_are_those_of_their_requests(replica, storage, batches):
    asks = [ask(storage, name, steps=8) for name in LORAS[:2]]
    streamed = dataclasses.replace(asks[0], partial_images=2)

    async def run():
        async def events():
            return [event async for event in replica.stream(streamed)]

        return await asyncio.gather(*await started(replica, events(), replica.generate(asks[1])))

    events, _ = asyncio.run(run())
    assert [type(event).__name__ for event in events] == ["Begun", "Partial", "Partial", "Finished"]
    last = decode_png(events[-1].data).astype(int)
    assert np.abs(last - alone(replica, storage, "lora0", steps=8)).max() <= LEVELS
    assert batches == [2]


def test_files_of_a_sum_with_long_names_are_copied(tmp_path, tiny_base, monkeypatch):
    """Four ids of 63 characters are more than the 255 bytes that a file's name may have."""
    monkeypatch.setattr(
        "dbray.serving.replica.replica.Store", lambda uri: Store(uri, filesystem=LocalFileSystem())
    )
    names = [f"{letter * 62}0" for letter in "abcd"]
    for index, name in enumerate(names):
        publish_lora(tmp_path / "registry", tiny_base, name, index, rank=2)
    replica = make_replica(tmp_path / "registry", tiny_base, scratch=str(tmp_path / "scratch"))
    image(asyncio.run(replica.generate(ask(tmp_path / "registry", "+".join(names)))))
    replica.close()
