"""dbray.serving.replica.cache: the five rules, with real threads."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Executor, ThreadPoolExecutor

import pytest
from kit.cache import held, using

from dbray.errors import DigestMismatch, ModelNotFound, StoreError
from dbray.serving.failures import Failures
from dbray.serving.replica.cache import CacheFull, TieredCache
from dbray.serving.replica.tiers import Level, Tier

pytestmark = pytest.mark.timeout(60)


class Inline(Executor):
    """Runs its work at once."""

    def submit(self, work, /, *args, **options):
        work(*args, **options)


class Storage:
    """Counts reads and verifications; `gates` block the verification of a key until they open.

    `unknown` keys fail when they are read, `bad` ones only when they are verified.
    """

    def __init__(self, size=10):
        self.size = size
        self.reads: list[str] = []
        self.verified: list[str] = []
        self.bad: dict[str, Exception] = {}
        self.unknown: set[str] = set()
        self.gates: dict[str, threading.Event] = {}
        self.entered: dict[str, threading.Event] = {}

    def read(self, key, below):
        assert below is None
        self.reads.append(key)
        if key in self.unknown:
            raise ModelNotFound(f"no model {key}")
        return f"ram:{key}", self.size

    def verify(self, key, value):
        assert value == f"ram:{key}"
        self.verified.append(key)
        if key in self.entered:
            self.entered[key].set()
        if key in self.gates:
            assert self.gates[key].wait(30)
        if key in self.bad:
            raise self.bad[key]


class Watched:
    def __init__(self):
        self.hits, self.loads, self.evictions = [], [], []
        self.most: dict[str, int] = {}

    def hit(self, tier):
        self.hits.append(tier)

    def load(self, tier, seconds):
        self.loads.append(tier)

    def evict(self, tier):
        self.evictions.append(tier)

    def size(self, tier, used_bytes):
        self.most[tier] = max(self.most.get(tier, 0), used_bytes)


def make_cache(storage, ram=40, device=40, clock=None, background=None):
    """Device values are twice the size of RAM values, as float32 is of float16."""
    watcher = Watched()
    ram_tier, device_tier = Tier("ram", ram, watcher), Tier("device", device, watcher)
    levels = [
        Level(ram_tier, storage.read),
        Level(
            device_tier,
            lambda key, below: (below.replace("ram", "device"), 2 * storage.size),
            size_of=lambda below: 2 * storage.size,
        ),
    ]
    options = {"clock": clock} if clock else {}
    cache = TieredCache(
        levels,
        storage.verify,
        background or Inline(),
        storage="disk",
        remembered=(ModelNotFound, DigestMismatch),
        watcher=watcher,
        failure_seconds=5,
        **options,
    )
    return cache, ram_tier, device_tier, watcher


@pytest.fixture
def pool():
    with ThreadPoolExecutor(8) as pool:
        yield pool


def test_values_are_read_from_each_tier_in_order():
    storage = Storage()
    cache, ram, device, watched = make_cache(storage, ram=40, device=20)
    with using(cache, "a@1") as hold:
        assert (hold.value, hold.source, hold.tier) == ("ram:a@1", "disk", ram)
        hold.settle()
    with using(cache, "a@1") as hold:
        assert (hold.value, hold.source) == ("device:a@1", "device")
    held(cache, "b@1").release()  # evicts a@1 from the device, not from RAM
    assert device.keys() == ["b@1"]
    assert ram.keys() == ["a@1", "b@1"]
    with using(cache, "a@1") as hold:  # returned from RAM, then loaded to the device
        assert (hold.value, hold.source) == ("ram:a@1", "ram")
    assert device.keys() == ["a@1"]
    assert storage.reads == storage.verified == ["a@1", "b@1"]
    assert watched.hits == ["disk", "device", "disk", "ram"]
    assert watched.evictions == ["device", "device"]


def test_the_budget_is_never_exceeded_and_the_least_recent_is_evicted():
    cache, ram, device, watched = make_cache(Storage(), ram=40, device=40)
    for key in ("a", "b", "a", "c", "a", "d", "e", "f"):
        held(cache, key).release()
    assert device.keys() == ["e", "f"]
    assert watched.most == {"ram": 40, "device": 40}
    assert ram.used_bytes == 40


def test_a_bad_key_evicts_nothing():
    storage = Storage()
    storage.bad["rotten"] = DigestMismatch("no")
    storage.unknown.add("lost")
    cache, ram, device, watched = make_cache(storage, ram=20, device=40)
    held(cache, "a").release()
    held(cache, "b").release()
    with pytest.raises(ModelNotFound):
        held(cache, "lost")
    with using(cache, "rotten") as hold, pytest.raises(DigestMismatch):
        hold.settle()
    assert ram.keys() == ["a", "b"]
    assert device.keys() == ["a", "b"]
    assert watched.evictions == []


def test_values_in_use_stay_and_new_ones_are_not_kept():
    cache, ram, device, _ = make_cache(Storage(), ram=40, device=40)
    for key in "ab":
        held(cache, key).release()
    first, second = held(cache, "a"), held(cache, "b")
    held(cache, "c").release()  # everything on the device is in use: it is kept in RAM only
    assert sorted(device.keys()) == ["a", "b"]
    with using(cache, "c") as third:
        assert third.tier is ram
    first.release()
    held(cache, "c").release()
    assert device.keys() == ["b", "c"]
    second.release()


def test_a_new_value_without_room_is_used_but_not_kept():
    storage = Storage()
    cache, ram, *_ = make_cache(storage, ram=20, device=0)
    for key in "ab":
        held(cache, key).release()
    holds = [held(cache, "a"), held(cache, "b")]
    for _ in range(2):
        with using(cache, "c") as hold:
            hold.settle()
            assert hold.value == "ram:c"
    assert ram.keys() == ["a", "b"]
    holds[0].release()
    held(cache, "c").release()
    assert ram.keys() == ["b", "c"]


def test_a_value_larger_than_the_budget_evicts_nothing():
    storage = Storage()
    cache, ram, device, _ = make_cache(storage, ram=20, device=40)
    held(cache, "a").release()
    storage.size = 30
    held(cache, "huge").release()
    assert ram.keys() == device.keys() == ["a"]


def requested_meanwhile(cache, key, count, readers, gate):
    """Request a key during its load, then open the gate; return each result or error."""

    async def ask():
        tasks = [asyncio.create_task(cache.hold(key, readers)) for _ in range(count)]
        await asyncio.sleep(0)  # all of them wait now
        gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    return asyncio.run(ask())


def test_concurrent_requests_share_one_load(pool):
    storage = Storage()
    storage.gates["a"], storage.entered["a"] = threading.Event(), threading.Event()
    cache, _, device, watched = make_cache(storage, background=pool)
    first = held(cache, "a")  # returned before it is verified
    assert storage.entered["a"].wait(30)
    assert device.keys() == []
    holds = requested_meanwhile(cache, "a", 6, pool, storage.gates["a"])
    first.settle()
    assert storage.reads == storage.verified == ["a"]
    assert device.num_pins("a") == 6
    assert watched.hits == ["disk"] * 7
    for hold in (first, *holds):
        hold.release()
        hold.release()
    assert device.num_pins("a") == 0


def test_different_keys_load_in_parallel(pool):
    storage = Storage()
    for key in "ab":
        storage.gates[key], storage.entered[key] = threading.Event(), threading.Event()
    cache, *_ = make_cache(storage, background=pool)
    holds = [held(cache, key) for key in "ab"]
    assert storage.entered["a"].wait(30)  # both are inside at once
    assert storage.entered["b"].wait(30)
    storage.gates["b"].set()
    holds[1].settle()  # the slow one does not delay the other
    storage.gates["a"].set()
    holds[0].settle()


def test_everyone_waiting_for_a_bad_load_gets_its_error(pool):
    storage = Storage()
    storage.bad["a"] = DigestMismatch("a is damaged")
    storage.gates["a"], storage.entered["a"] = threading.Event(), threading.Event()
    cache, *_ = make_cache(storage, background=pool)
    first = held(cache, "a")
    assert storage.entered["a"].wait(30)
    errors = requested_meanwhile(cache, "a", 4, pool, storage.gates["a"])
    assert [str(error) for error in errors] == ["a is damaged"] * 4
    with pytest.raises(DigestMismatch, match="a is damaged"):
        first.settle()
    assert storage.reads == ["a"]


def test_bad_keys_are_remembered_for_a_short_time_only():
    now = [100.0]
    storage = Storage()
    storage.unknown.add("a")
    cache, *_ = make_cache(storage, clock=lambda: now[0])
    for _ in range(3):
        with pytest.raises(ModelNotFound):
            held(cache, "a")
    assert storage.reads == ["a"]
    storage.unknown.clear()
    now[0] += 5.1
    assert held(cache, "a").value == "ram:a"


def test_a_failure_of_storage_is_not_remembered():
    storage = Storage()
    storage.bad["a"] = StoreError("connection reset")
    cache, *_ = make_cache(storage)
    with using(cache, "a") as hold, pytest.raises(StoreError):
        hold.settle()
    del storage.bad["a"]
    with using(cache, "a") as hold:
        hold.settle()
    assert held(cache, "a").source == "device"


def test_the_memory_of_failures_is_bounded(monkeypatch):
    monkeypatch.setattr("dbray.serving.failures._MAX_FAILURES", 3)
    failures = Failures(60)
    for key in range(10):
        failures.remember(key, ModelNotFound(str(key)))
    assert [failures.get(key) is not None for key in range(10)] == [False] * 7 + [True] * 3


def test_purge_reaches_every_tier_and_values_in_use_after_release():
    cache, ram, device, _ = make_cache(Storage(), ram=40, device=80)
    for key in ("rex@1", "rex@2", "mia@1"):
        held(cache, key).release()
    used = held(cache, "rex@1")
    gone = ModelNotFound("taken down")
    assert cache.purge(lambda key: key.startswith("rex@"), gone) == 2
    assert cache.keys() == {"mia@1"}
    assert ram.keys() == ["mia@1"]
    with pytest.raises(ModelNotFound, match="taken down"):
        held(cache, "rex@1")
    assert device.used_bytes == 40  # the user of rex@1 still has it
    used.release()
    assert device.used_bytes == 20


def test_purge_removes_a_load_in_flight(pool):
    storage = Storage()
    storage.gates["rex@1"], storage.entered["rex@1"] = threading.Event(), threading.Event()
    cache, *_ = make_cache(storage, background=pool)
    hold = held(cache, "rex@1")
    assert storage.entered["rex@1"].wait(30)
    cache.purge(lambda key: True, ModelNotFound("taken down"))
    storage.gates["rex@1"].set()
    with pytest.raises(ModelNotFound):
        hold.settle()
    assert cache.keys() == set()
    assert all(level.tier.used_bytes == 0 for level in cache.levels)


def test_a_failed_load_frees_its_room():
    storage = Storage()
    tier, top = Tier("ram", 40), Tier("device", 40)

    def fail(key, below):
        raise MemoryError("device")

    levels = [Level(tier, storage.read), Level(top, fail, size_of=lambda below: 20)]
    cache = TieredCache(levels, storage.verify, Inline())
    with using(cache, "a") as hold:
        hold.settle()
    assert top.used_bytes == 0
    assert tier.num_pins("a") == 0


def test_remote_files_are_copied_and_old_copies_removed():
    storage, gone = Storage(), []
    disk = Level(Tier("disk", 20, dispose=gone.append), lambda key, below: (f"disk:{key}", 10))
    ram = Level(Tier("ram", 10), lambda key, below: (below.replace("disk", "ram"), 10))

    cache = TieredCache([disk, ram], lambda key, value: None, Inline(), lowest_usable=1)
    for key in "abc":
        with using(cache, key) as hold:
            assert (hold.value, hold.source) == (f"ram:{key}", "storage")
    assert gone == ["disk:a"]
    assert held(cache, "b").source == "disk"
    disk.tier.pin("b")
    disk.tier.pin("c")
    with pytest.raises(CacheFull) as caught:
        held(cache, "d")
    assert caught.value.retryable
    assert gone == ["disk:a", "disk:d"]
    assert storage.reads == []


def test_pins_and_budget_hold_under_concurrent_use(pool):
    storage = Storage()
    cache, ram, device, watched = make_cache(storage, ram=100, device=100, background=pool)

    def work(seed):
        for step in range(200):
            key = f"m{(seed * 7 + step * step) % 23}"
            with using(cache, key) as hold:
                assert hold.value.endswith(f":{key}")

    with ThreadPoolExecutor(4) as workers:
        list(workers.map(work, range(4)))
    pool.shutdown(wait=True)  # values that are still being loaded have pins
    assert max(watched.most.values()) <= 100
    for tier in (ram, device):
        assert all(tier.num_pins(key) == 0 for key in tier.keys())  # noqa: SIM118
        assert tier.used_bytes == (10 if tier is ram else 20) * len(tier.keys())
