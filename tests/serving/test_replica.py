"""dbray.serving.replica.replica: a real replica on a tiny base, without Ray around it."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import weakref
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from kit.serving import perturbed, publish
from pyarrow.fs import LocalFileSystem

from dbray import bases
from dbray.errors import BaseError
from dbray.method.full import METHOD, flatten
from dbray.records.models import Registry
from dbray.serving.messages import Answer, Ask, Begun, Finished, Partial, Refusal, Share
from dbray.serving.options import GIB, ServeOptions
from dbray.serving.replica.replica import Replica
from dbray.serving.replica.weights import Source
from dbray.storage.store import Store
from dbray.subjects.images import decode_png

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def storage(tmp_path_factory, tiny_base):
    folder = tmp_path_factory.mktemp("registry")
    for seed, name in enumerate(("rex", "mia", "tom")):
        publish(folder, tiny_base, name, seed)
    return folder


def make_replica(storage, tiny_base, **changes):
    size = len(perturbed(tiny_base, 0))
    options = {"device_gib": 2.5 * 2 * size / GIB, "ram_gib": 4.5 * size / GIB} | changes
    return Replica(
        ServeOptions(registry=str(storage), base=str(tiny_base), device="cpu", **options)
    )


@pytest.fixture(scope="module")
def replica(storage, tiny_base):
    replica = make_replica(storage, tiny_base)
    yield replica
    replica.close()


def ask(storage, model="rex", seeds=(7,), steps=4, **fields):
    fields = {"tenant": "t", "prompt": "a photo of zx dog", "deadline_seconds": 60.0} | fields
    fields |= {"seeds": tuple(seeds), "sampling": {"steps": steps}}
    if model == "base":
        return Ask((), **fields)
    record = Registry(Store(str(storage))).find(model)
    return Ask((Share(record.id, record.revision),), **fields)


def images(answer):
    assert isinstance(answer, Answer), answer
    return [decode_png(data).astype(int) for data in answer.images]


async def until(condition):
    """Wait for a condition; the test's time limit is the limit."""
    while not await condition():
        await asyncio.sleep(0.01)


def test_a_batch_gives_the_images_of_single_requests(replica, storage):
    together = images(asyncio.run(replica.generate(ask(storage, seeds=(1, 2, 3, 4)))))
    for seed, image in zip((1, 2, 3, 4), together, strict=True):
        [alone] = images(asyncio.run(replica.generate(ask(storage, seeds=(seed,)))))
        assert np.abs(image - alone).max() <= 1
    assert not np.array_equal(together[0], together[1])


def test_waiting_requests_share_batches(replica, storage):
    async def crowd():
        async with aclosing(replica.stream(ask(storage, "mia", steps=400))) as first:
            await anext(first)  # the device is busy from here on
            asks = [ask(storage, seeds=(seed,)) for seed in range(4)]
            return await asyncio.gather(*(replica.generate(one) for one in asks))

    answers = asyncio.run(crowd())
    queued = [answer.begun.queue_ms for answer in answers]
    assert max(queued) - min(queued) < 50  # they began at once
    for seed, answer in enumerate(answers):
        [alone] = images(asyncio.run(replica.generate(ask(storage, seeds=(seed,)))))
        assert np.abs(images(answer)[0] - alone).max() <= 1


def test_the_same_seed_gives_the_same_bytes(replica, storage):
    first = asyncio.run(replica.generate(ask(storage, seeds=(5, 6))))
    asyncio.run(replica.generate(ask(storage, "mia")))
    asyncio.run(replica.generate(ask(storage, "base")))
    assert asyncio.run(replica.generate(ask(storage, seeds=(5, 6)))).images == first.images


def test_a_model_draws_the_same_after_any_other(replica, storage):
    names = ("base", "rex", "mia", "tom")
    fresh = {}
    for name in names:
        fresh[name] = asyncio.run(replica.generate(ask(storage, name))).images
    assert len(set(fresh.values())) == 4
    for name in ("tom", "base", "rex", "tom", "mia", "base"):
        assert asyncio.run(replica.generate(ask(storage, name))).images == fresh[name]


def test_the_tier_of_the_weights_is_reported(storage, tiny_base):
    replica = make_replica(storage, tiny_base)

    def source(name):
        return asyncio.run(replica.generate(ask(storage, name))).begun.source

    names = ("rex", "rex", "mia", "rex", "tom", "mia", "base")
    assert [source(name) for name in names] == [
        "disk", "resident", "disk", "device", "disk", "ram", "resident",
    ]  # fmt: skip
    figures = asyncio.run(replica.figures())
    assert figures["bytes"]["device"] <= replica.options.device_gib * GIB
    replica.close()


def test_partial_images_come_before_the_last(replica, storage):
    async def run():
        return [event async for event in replica.stream(ask(storage, steps=8, partial_images=3))]

    begun, *partial, last = asyncio.run(run())
    assert isinstance(begun, Begun)
    assert isinstance(last, Finished)
    assert [event.number for event in partial if isinstance(event, Partial)] == [0, 1, 2]
    final = decode_png(last.data).astype(int)
    errors = [np.abs(decode_png(event.data).astype(int) - final).mean() for event in partial]
    assert errors[-1] < errors[0]


def test_a_disconnected_caller_frees_the_device(replica, storage, monkeypatch):
    real, steps = replica._backbone.denoise, []

    def counted(*arguments):
        steps.append(1)
        return real(*arguments)

    monkeypatch.setattr(replica._backbone, "denoise", counted)

    async def run():
        async with aclosing(replica.stream(ask(storage, "mia", steps=1000))) as events:
            await anext(events)
        return await replica.generate(ask(storage, "rex", steps=1))

    assert isinstance(asyncio.run(run()), Answer)
    assert len(steps) < 900


def test_slow_storage_delays_only_its_own_requests(storage, tiny_base, monkeypatch):
    names = [publish(storage, tiny_base, f"slow{i}", 80 + i).name for i in range(4)]
    opened, read = threading.Event(), Source.read

    def late(self, key, files):
        assert not key.startswith("slow") or opened.wait(60)
        return read(self, key, files)

    monkeypatch.setattr(Source, "read", late)
    replica = make_replica(storage, tiny_base)

    async def run():
        await replica.generate(ask(storage, "rex"))
        waiting = [asyncio.create_task(replica.generate(ask(storage, name))) for name in names * 3]
        await asyncio.sleep(0)  # each is on its way
        others = [await replica.generate(ask(storage, name)) for name in ("base", "rex")]
        assert not any(task.done() for task in waiting)
        opened.set()
        return others, await asyncio.gather(*waiting)

    others, slow = asyncio.run(run())
    assert all(images(answer) for answer in (*others, *slow))
    replica.close()


def test_requests_waiting_for_the_device_use_no_memory(storage, tiny_base, monkeypatch):
    names = [publish(storage, tiny_base, f"crowd{i}", 200 + i).name for i in range(12)]
    read, read_so_far, alive = Source.read, [], []

    def counted(self, key, files):
        flat, size_bytes = read(self, key, files)
        read_so_far.append(weakref.ref(flat))
        alive.append(sum(ref() is not None for ref in read_so_far))
        return flat, size_bytes

    monkeypatch.setattr(Source, "read", counted)
    replica = make_replica(storage, tiny_base, ram_gib=1e-9, device_gib=1e-9)

    async def run():
        async with aclosing(replica.stream(ask(storage, "base", steps=1000))) as events:
            await anext(events)  # the device is busy from here on
            waiting = [asyncio.create_task(replica.generate(ask(storage, n))) for n in names]

            async def are_some_read():
                return len(alive) >= 2

            await until(are_some_read)
        return await asyncio.gather(*waiting)

    assert all(images(answer) for answer in asyncio.run(run()))
    assert len(alive) == len(names)
    assert max(alive) <= 4  # two in use, and those that the device has just finished
    replica.close()


def test_unverified_weights_are_not_counted_as_loaded(storage, tiny_base, monkeypatch):
    opened, verify = threading.Event(), Source.verify

    def late(self, key, value):
        assert opened.wait(30)
        verify(self, key, value)

    monkeypatch.setattr(Source, "verify", late)
    replica = make_replica(storage, tiny_base)

    async def resident():
        return (await replica.figures())["resident"]

    async def run():
        async with aclosing(replica.stream(ask(storage, "rex", steps=1000))) as events:
            await anext(events)
            assert (await resident()).startswith("rex@")

        async def is_unknown():
            return await resident() == "?"

        await until(is_unknown)
        opened.set()
        answer = await replica.generate(ask(storage, "rex", steps=1))
        assert answer.begun.source != "resident"
        assert (await resident()).startswith("rex@")

    asyncio.run(run())
    replica.close()


def test_a_disconnected_caller_does_not_affect_its_batch(replica, storage):
    async def run():
        stay = asyncio.create_task(replica.generate(ask(storage, seeds=(3,), steps=50)))
        async with aclosing(replica.stream(ask(storage, seeds=(4,), steps=50))) as events:
            await anext(events)
        return await stay

    assert images(asyncio.run(run()))


def test_a_request_out_of_time_ends(replica, storage):
    refusal = asyncio.run(replica.generate(ask(storage, steps=1000, deadline_seconds=0.05)))
    assert isinstance(refusal, Refusal)
    assert refusal.status in (503, 504)
    assert refusal.retry_after


def test_sizes_near_the_bases_own_are_drawn(replica, storage):
    [wide] = images(asyncio.run(replica.generate(ask(storage, size=(48, 24)))))
    assert wide.shape == (24, 48, 3)
    for width, drawn in ((8, 16), (33, 32), (2000, 64)):
        [image] = images(asyncio.run(replica.generate(ask(storage, size=(width, 32)))))
        assert image.shape[1] == drawn
        strict = ask(storage, size=(width, 32), strict_size=True)
        refusal = asyncio.run(replica.generate(strict))
        assert isinstance(refusal, Refusal)
        assert (refusal.status, refusal.param) == (400, "size")
        assert "32x32" in refusal.message


def test_a_model_is_drawn_at_its_own_size(replica, storage):
    for resolution in (40, 72):  # 72 is more than twice the base's 32
        [image] = images(asyncio.run(replica.generate(ask(storage, resolution=resolution))))
        assert image.shape == (resolution, resolution, 3)
    own = ask(storage, resolution=72, size=(72, 72), strict_size=True)
    assert images(asyncio.run(replica.generate(own)))
    [other] = images(asyncio.run(replica.generate(ask(storage, resolution=72, size=(32, 40)))))
    assert other.shape == (40, 32, 3)
    foreign = ask(storage, resolution=40, size=(72, 72), strict_size=True)
    refusal = asyncio.run(replica.generate(foreign))
    assert (refusal.status, refusal.param) == (400, "size")
    assert "40x40" in refusal.message


def test_images_have_the_requested_format(replica, storage):
    for output_format, magic in (("png", b"\x89PNG"), ("webp", b"RIFF"), ("jpeg", b"\xff\xd8")):
        answer = asyncio.run(replica.generate(ask(storage, output_format=output_format)))
        assert answer.images[0].startswith(magic)


def test_bad_models_are_rejected_and_evict_nothing(storage, tiny_base):
    rotten = publish(storage, tiny_base, "rotten", 50)
    [file] = Path(storage, "models", "rotten").glob("*/unet.safetensors")
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    misfit = safetensors.torch.save({"conv_in.weight": torch.zeros(3)})
    publish(storage, tiny_base, "misfit", 51, weights=misfit)
    other = publish(storage, tiny_base, "other", 52, base_digest="0" * 64)
    replica = make_replica(storage, tiny_base)
    for name in ("rex", "mia"):
        asyncio.run(replica.generate(ask(storage, name)))
    before = asyncio.run(replica.figures())
    for model in (rotten, other):
        refusal = asyncio.run(replica.generate(ask(storage, model.name)))
        assert (refusal.status, refusal.code) == (500, "model_unusable")
        assert refusal.headers() == {"x-should-retry": "false"}
        assert str(storage) not in refusal.message
    assert asyncio.run(replica.generate(ask(storage, "misfit"))).code == "model_unusable"
    gone = ask(storage, "tom", prompt="p")
    gone = Ask((Share("gone", "0" * 12),), "t", "p", gone.seeds, 60.0)
    assert asyncio.run(replica.generate(gone)).code == "model_not_found"
    assert asyncio.run(replica.figures())["keys"] == before["keys"]
    replica.close()


def test_a_takedown_of_one_revision_keeps_the_others(storage, tiny_base):
    old, new = (publish(storage, tiny_base, "grown", seed) for seed in (62, 63))
    replica = make_replica(storage, tiny_base)

    async def run():
        for record in (old, new):
            await replica.generate(ask(storage, record.name))
        await replica.forget([old.name])
        return await replica.generate(ask(storage, new.name)), await replica.figures()

    answer, figures = asyncio.run(run())
    assert answer.begun.source == "resident"
    assert figures["keys"] == {"ram": [new.name], "device": [new.name]}
    replica.close()


def test_a_takedown_empties_every_tier_and_the_module(storage, tiny_base):
    publish(storage, tiny_base, "doomed", 60)
    replica = make_replica(storage, tiny_base)

    async def run():
        request = ask(storage, "doomed", steps=1000)
        running = asyncio.create_task(replica.generate(request))
        figures = await replica.figures()
        while not figures["resident"].startswith("doomed"):
            await asyncio.sleep(0.01)
            figures = await replica.figures()
        await replica.forget(Registry(Store(str(storage))).remove("doomed"))
        return await running, await replica.generate(request), await replica.figures()

    running, after, figures = asyncio.run(run())
    assert (running.status, after.status) == (404, 404)
    assert figures["resident"] == "base"
    assert figures["keys"] == {"ram": [], "device": []}
    replica.close()


def test_a_model_removed_by_another_process_is_dropped(storage, tiny_base):
    publish(storage, tiny_base, "removed", 61)
    replica = make_replica(storage, tiny_base, sweep_seconds=0.05)

    async def run():
        await replica.generate(ask(storage, "removed"))
        Registry(Store(str(storage))).remove("removed")

        async def is_gone():
            figures = await replica.figures()
            return figures["keys"]["device"] == [] and figures["resident"] == "base"

        await until(is_gone)

    asyncio.run(run())
    replica.close()


def test_a_remote_registry_is_copied_and_the_copies_are_bounded(
    storage, tiny_base, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "dbray.serving.replica.replica.Store", lambda uri: Store(uri, filesystem=LocalFileSystem())
    )
    size = len(perturbed(tiny_base, 0))
    replica = make_replica(
        storage, tiny_base, disk_gib=2.5 * size / GIB, ram_gib=1.5 * size / GIB,
        device_gib=1e-9, scratch=str(tmp_path),
    )  # fmt: skip
    for name in ("rex", "mia", "tom", "rex"):
        assert asyncio.run(replica.generate(ask(storage, name))).begun.source == "storage"
    assert asyncio.run(replica.generate(ask(storage, "tom"))).begun.source == "disk"
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors")) <= 2.5 * size
    replica.__del__()  # Ray Serve calls it at the end
    assert list(tmp_path.iterdir()) == []
    replica.close()


def test_health_depends_on_the_device_thread(storage, tiny_base):
    replica = make_replica(storage, tiny_base)
    replica.check_health()
    replica.close()
    with pytest.raises(RuntimeError, match="device"):
        replica.check_health()


def failing(replica, monkeypatch, times):
    """Make the device fail a number of times."""
    real, left = replica._backbone.denoise, iter(range(times))

    def denoise(*arguments):
        if next(left, None) is not None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return real(*arguments)

    monkeypatch.setattr(replica._backbone, "denoise", denoise)


def test_one_device_failure_fails_one_batch(storage, tiny_base, monkeypatch):
    replica = make_replica(storage, tiny_base)
    expected = asyncio.run(replica.generate(ask(storage, "base"))).images
    failing(replica, monkeypatch, 1)
    assert asyncio.run(replica.generate(ask(storage, "rex"))).code == "internal_error"
    replica.check_health()
    assert asyncio.run(replica.generate(ask(storage, "base"))).images == expected
    assert images(asyncio.run(replica.generate(ask(storage, "rex"))))
    replica.close()


def test_a_permanently_failing_device_makes_the_replica_unhealthy(storage, tiny_base, monkeypatch):
    replica = make_replica(storage, tiny_base)
    failing(replica, monkeypatch, 10**6)
    assert asyncio.run(replica.generate(ask(storage, "rex"))).code == "internal_error"
    replica._painter._thread.join(60)
    with pytest.raises(RuntimeError, match="device"):
        replica.check_health()
    replica.close()


def flat_file(**tensors):
    return torch.frombuffer(bytearray(safetensors.torch.save(tensors)), dtype=torch.uint8)


def test_a_published_file_is_flattened_without_a_copy():
    a, b = torch.randn(2, 3).half(), torch.randn(4).half()
    layout = {"a": a.shape, "b": b.shape}
    content = flat_file(b=b, a=a)
    flat = flatten(content, layout, "f")
    assert torch.equal(flat, torch.cat([a.flatten(), b]))
    assert flat.untyped_storage().data_ptr() == content.untyped_storage().data_ptr()
    mixed = flatten(flat_file(a=a, b=b.float()), layout, "f")
    assert torch.equal(mixed, torch.cat([a.float().flatten(), b.float()]))
    doubles = flatten(flat_file(a=a.double(), b=b.double()), layout, "f")
    assert torch.equal(doubles, torch.cat([a.double().flatten(), b.double()]))


def test_invalid_and_mismatched_weight_files_are_rejected():
    a = torch.randn(2, 3).half()
    good = flat_file(a=a)
    layout = {"a": a.shape}
    assert flatten(good, layout, "f") is not None
    for bad in (good[:-2], good[:20], good[:4], torch.zeros(64, dtype=torch.uint8),
                torch.full((64,), 255, dtype=torch.uint8), flat_file(a=a, b=a + 1), flat_file(c=a),
                flat_file(a=a.T.contiguous())):  # fmt: skip
        with pytest.raises(BaseError):
            flatten(bad, layout, "f")


def test_tensors_of_the_module_are_gathered_and_restored(tiny_base):
    backbone = bases.load(bases.resolve(str(tiny_base)))
    models = backbone.network(("unet", "text_encoder"))
    before = {name: value.clone() for name, value in models.state_dict().items()}
    resident = backbone.resident
    content = torch.frombuffer(bytearray(perturbed(tiny_base, 1)), dtype=torch.uint8)
    resident.put(METHOD.read({"unet.safetensors": content}, resident.layouts))
    for name, value in safetensors.torch.load(perturbed(tiny_base, 1)).items():
        assert torch.equal(models.state_dict()[f"unet.{name}"], value.float())
    resident.put(None)
    assert all(torch.equal(models.state_dict()[name], value) for name, value in before.items())
    with pytest.raises(BaseError, match="no part 'vae'"):
        METHOD.read({"vae.safetensors": content}, resident.layouts)


def test_an_unsupported_sampler_is_rejected(storage, tiny_base):
    replica = make_replica(storage, tiny_base)
    asked = dataclasses.replace(ask(storage, "rex"), sampling={"sampler": "euler"})
    refused = asyncio.run(replica.generate(asked))
    assert (refused.status, refused.param) == (400, "scheduler")
    assert "choose one of: ddpm" in refused.message
    replica.close()
