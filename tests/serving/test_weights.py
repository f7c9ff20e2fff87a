"""The cache and its loads on an event loop, also after takedowns and failures."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from kit.cache import held, using

from dbray.errors import ModelNotFound, StoreError
from dbray.serving.replica.cache import TieredCache
from dbray.serving.replica.loads import Loads
from dbray.serving.replica.scratch import Scratch
from dbray.serving.replica.tiers import Level, Tier

pytestmark = pytest.mark.timeout(60)

GONE = ModelNotFound("taken down")


class Gate:
    """Blocks callers until it is opened."""

    def __init__(self):
        self.entered, self.opened = threading.Event(), threading.Event()

    def __call__(self):
        self.entered.set()
        assert self.opened.wait(30)


@pytest.fixture
def background():
    with ThreadPoolExecutor(4) as pool:
        yield pool


class Storage:
    """Storage with two tiers. Keys in `gates` are blocked while read, verified or lifted."""

    def __init__(self, background, ram_bytes=40, clock=None):
        self.gates: dict[tuple[str, str], Gate] = {}
        self.failing: dict[str, Exception] = {}
        self.reads: list[str] = []
        self.ram, self.device = Tier("ram", ram_bytes), Tier("device", 40)
        levels = [
            Level(self.ram, self.read),
            Level(self.device, self.lift, size_of=lambda below: 10),
        ]
        options = {"clock": clock} if clock else {}
        self.cache = TieredCache(
            levels,
            lambda key, value: self.pass_gate("verify", key),
            background,
            remembered=(ModelNotFound,),
            failure_seconds=5,
            **options,
        )

    def gate(self, step, key):
        self.gates[step, key] = gate = Gate()
        return gate

    def pass_gate(self, step, key):
        if (step, key) in self.gates:
            self.gates[step, key]()

    def read(self, key, below):
        self.reads.append(key)
        self.pass_gate("read", key)
        return f"ram:{key}", 10

    def lift(self, key, below):
        self.pass_gate("lift", key)
        if key in self.failing:
            raise self.failing[key]
        return f"device:{key}", 10


async def soon(event):
    """Wait for a threading event without blocking the loop."""
    assert await asyncio.to_thread(event.wait, 30)


def test_loaded_values_and_followers_use_no_thread(background):
    storage = Storage(background)
    with using(storage.cache, "warm"):
        pass
    slow = storage.gate("read", "slow")

    async def run(readers):
        asks = [asyncio.create_task(storage.cache.hold("slow", readers)) for _ in range(9)]
        await soon(slow.entered)
        other = asyncio.create_task(storage.cache.hold("other", readers))
        (await storage.cache.hold("warm", readers)).release()  # no thread is needed
        (await other).release()  # eight followers wait, but a thread is free
        slow.opened.set()
        holds = await asyncio.gather(*asks)
        assert {hold.value.partition(":")[2] for hold in holds} == {"slow"}
        for hold in holds:
            hold.release()

    with ThreadPoolExecutor(2) as readers:
        asyncio.run(run(readers))
    assert storage.reads == ["warm", "slow", "other"]


def test_a_disconnected_caller_does_not_end_a_shared_load(background):
    storage = Storage(background)
    slow = storage.gate("read", "a")

    async def run(readers):
        leads = asyncio.create_task(storage.cache.hold("a", readers))
        await soon(slow.entered)
        follows, leaves = (asyncio.create_task(storage.cache.hold("a", readers)) for _ in range(2))
        await asyncio.sleep(0)
        leads.cancel()
        leaves.cancel()
        slow.opened.set()
        return (await follows).value

    with ThreadPoolExecutor(1) as readers:
        assert asyncio.run(run(readers)) == "device:a"
    assert storage.reads == ["a"]
    assert storage.ram.num_pins("a") == 0  # the disconnected caller left no hold


def test_a_new_value_is_pinned_while_in_use(background):
    storage = Storage(background, ram_bytes=20)
    holds = [held(storage.cache, key) for key in "abc"]
    for hold in holds:
        asyncio.run(hold.landed())
    assert sorted(storage.ram.keys()) == ["a", "b"]  # the third is used, but not kept
    assert [hold.tier for hold in holds] == [storage.ram, storage.ram, None]
    holds[0].release()
    holds[0].release()
    held(storage.cache, "d").release()
    assert [storage.ram.num_pins(key) for key in "ab"] == [0, 1]


def test_a_hold_released_before_the_value_is_kept_leaves_no_pin(background):
    storage = Storage(background)
    gate = storage.gate("verify", "a")
    hold = held(storage.cache, "a")
    assert gate.entered.wait(30)
    hold.release()
    gate.opened.set()
    asyncio.run(hold.landed())
    assert (storage.ram.keys(), storage.ram.num_pins("a")) == (["a"], 0)


class Crowd:
    """Users of models; each holds its model until `leave`. Tenths are users of one model."""

    def __init__(self, loads):
        self._loads = loads
        self._tasks: dict[float, asyncio.Task[None]] = {}
        self.holds = {}

    def come(self, *numbers, turn=None):
        for number in numbers:
            self._tasks[number] = asyncio.create_task(self._use(number, turn or (0.0, number)))

    async def _use(self, number, turn):
        async with self._loads.using(f"m{int(number)}", lambda: turn) as hold:
            self.holds[number] = hold
            try:
                await asyncio.Event().wait()
            finally:
                del self.holds[number]

    async def leave(self, *numbers):
        for number in numbers:
            self._tasks[number].cancel()
            await asyncio.wait([self._tasks.pop(number)])

    async def until(self, *numbers):
        """Wait until exactly these have their model; the test's time limit is the limit."""
        while sorted(self.holds) != sorted(numbers):
            await asyncio.sleep(0.001)


def crowded(storage, count, scene):
    """Run a scene with a crowd, and check that nothing stays in use."""

    async def run(readers):
        loads = Loads(storage.cache, readers, count)
        crowd = Crowd(loads)
        await scene(crowd)
        await crowd.leave(*list(crowd._tasks))
        while loads._loads or storage.cache._flights:
            await asyncio.sleep(0.001)
        assert not loads._waiting

    with ThreadPoolExecutor(4) as readers:
        asyncio.run(run(readers))
    for key in storage.reads:
        assert storage.ram.num_pins(key) == 0


def test_a_request_for_a_model_also_waits_for_its_memory(background):
    storage = Storage(background, ram_bytes=0)

    async def scene(crowd):
        crowd.come(*range(32))
        for number in range(31):
            await crowd.until(number, number + 1)
            assert len(storage.reads) == number + 2
            await crowd.leave(number)

    crowded(storage, 2, scene)


def test_models_are_loaded_in_the_order_of_serving(background):
    storage = Storage(background, ram_bytes=0)

    async def scene(crowd):
        crowd.come(1, 2, 3, 4, turn=(9.0, 0.0))
        await crowd.until(1, 2)
        crowd.come(5, turn=(1.0, 0.0))
        await asyncio.sleep(0)
        await crowd.leave(1)
        await crowd.until(2, 5)

    crowded(storage, 2, scene)


def test_users_of_one_model_share_it_and_make_room_for_others(background):
    storage = Storage(background, ram_bytes=0)

    async def scene(crowd):
        crowd.come(1, 1.1, 2, 2.1)
        await crowd.until(1, 1.1, 2, 2.1)
        assert crowd.holds[1] is crowd.holds[1.1]
        crowd.come(3, turn=(0.0, 3))
        await asyncio.sleep(0)
        crowd.come(1.2, 1.3, turn=(0.0, 4))  # would keep the model in use, but arrived later
        await asyncio.sleep(0)
        await crowd.leave(1)
        assert sorted(crowd.holds) == [1.1, 2, 2.1]
        await crowd.leave(1.1)
        await crowd.until(2, 2.1, 3)
        await crowd.leave(2, 2.1)
        await crowd.until(1.2, 1.3, 3)

    crowded(storage, 2, scene)
    assert sorted(storage.reads) == ["m1", "m1", "m2", "m3"]


def test_values_in_a_tier_are_available_at_once(background):
    storage = Storage(background)
    with using(storage.cache, "m7") as hold:
        hold.settle()
    slow = storage.gate("read", "m1")

    async def scene(crowd):
        crowd.come(1, 2)
        await soon(slow.entered)
        crowd.come(7)
        await crowd.until(7)
        await crowd.leave(2, 1)  # one waits, the other's read ends when it is complete
        crowd.come(3)
        await asyncio.sleep(0)
        assert sorted(crowd.holds) == [7]
        slow.opened.set()
        await crowd.until(3, 7)

    crowded(storage, 1, scene)
    assert storage.reads == ["m7", "m1", "m3"]


def test_a_failed_load_makes_room(background):
    storage = Storage(background)

    def fail(key, below):
        raise StoreError("connection reset")

    cache = TieredCache([Level(storage.ram, fail)], lambda key, value: None, background)

    async def run(readers):
        loads = Loads(cache, readers, 1)

        async def use(key):
            async with loads.using(key, lambda: (0.0, 0.0)):
                raise AssertionError("there is nothing to use")

        return await asyncio.gather(*map(use, "aabb"), return_exceptions=True)

    with ThreadPoolExecutor(1) as readers:
        failures = asyncio.run(run(readers))
    assert [str(failure) for failure in failures] == ["connection reset"] * 4


def test_a_takedown_reaches_a_load_slower_than_the_memory_of_failures(background):
    now = [100.0]
    storage = Storage(background, clock=lambda: now[0])
    gate = storage.gate("verify", "rex@1")
    hold = held(storage.cache, "rex@1")
    assert gate.entered.wait(30)
    assert storage.cache.purge(lambda key: key == "rex@1", GONE) == 1
    now[0] += 60
    gate.opened.set()
    with pytest.raises(ModelNotFound, match="taken down"):
        hold.settle()
    assert not hold.is_settled
    assert storage.cache.keys() == set()


def test_a_takedown_reaches_a_key_on_its_way_to_the_device(background):
    storage = Storage(background)
    gate = storage.gate("lift", "rex@1")
    hold = held(storage.cache, "rex@1")
    hold.settle()
    assert gate.entered.wait(30)
    storage.cache.purge(lambda key: True, GONE)
    gate.opened.set()
    with pytest.raises(ModelNotFound):
        asyncio.run(hold.landed())
    assert storage.cache.keys() == set()


def test_an_image_neither_waits_for_nor_fails_with_the_device_tier(background, caplog):
    storage = Storage(background)
    gate = storage.gate("lift", "a")
    storage.failing["a"] = MemoryError("device")
    hold = held(storage.cache, "a")
    hold.settle()  # verified; the lift has not failed yet
    assert hold.is_settled
    gate.opened.set()
    asyncio.run(hold.landed())
    assert "MemoryError" in caplog.text
    assert (storage.ram.keys(), storage.device.keys()) == (["a"], [])
    assert storage.device.used_bytes == 0
    with using(storage.cache, "a") as again:
        assert again.value == "ram:a"


def test_a_storage_failure_reaches_all_waiting_requests(background):
    storage = Storage(background)
    slow = storage.gate("read", "a")

    def fail(key, below):
        slow()
        raise StoreError("connection reset")

    cache = TieredCache([Level(storage.ram, fail)], lambda key, value: None, background)

    async def run(readers):
        asks = [asyncio.create_task(cache.hold("a", readers)) for _ in range(3)]
        await soon(slow.entered)
        await asyncio.sleep(0)
        slow.opened.set()
        return await asyncio.gather(*asks, return_exceptions=True)

    with ThreadPoolExecutor(1) as readers:
        failures = asyncio.run(run(readers))
    assert [str(failure) for failure in failures] == ["connection reset"] * 3


def test_a_copy_without_room_is_removed(background):
    made, removed = [], []

    def copy(key, below):
        made.append(key)
        return key, 10

    disk = Level(Tier("disk", 10, dispose=removed.append), copy)
    ram = Level(Tier("ram", 0), lambda key, below: (below, 10))
    cache = TieredCache([disk, ram], lambda key, value: None, background, lowest_usable=1)
    with using(cache, "a") as hold:
        hold.settle()
    disk.tier.pin("a")
    with pytest.raises(Exception, match="no room"):
        held(cache, "b")
    assert (made, removed) == (["a", "b"], ["b"])


HOLD = """
import sys
from dbray.serving.replica.scratch import Scratch
scratch = Scratch(sys.argv[1])
(scratch.folder / "copy").write_bytes(b"x")
print(scratch.folder, flush=True)
sys.stdin.readline()
"""


def test_scratch_of_dead_processes_is_removed(tmp_path):
    (tmp_path / "dbray-serving-unlocked").mkdir()
    (tmp_path / "other").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    folder = process.stdout.readline().strip()
    mine = Scratch(str(tmp_path))
    kept = {"dbray-serving-unlocked", "other", mine.folder.name}
    names = {path.name for path in tmp_path.iterdir()}
    assert names == kept | {folder.rpartition("/")[2]}
    process.kill()
    process.communicate()
    Scratch(str(tmp_path)).close()
    assert {path.name for path in tmp_path.iterdir()} == kept
    mine.close()
    mine.close()
    assert not mine.folder.exists()
