"""Do unfinished bodies slow down other tenants? 600 connections of one key that never finish.

    python benchmarks/flood.py [--base miniature] [--connections 600] [--requests 150] [--keep]

A real server with two keys. One tenant requests images and /healthz, first alone, then while
the other keeps connections that announce a body and send its first byte. The server holds 512 of a
tenant, ends the oldest for a new one, and each is opened again at once. Measure on an otherwise
idle machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from measure import finish, print_table
from serving import Site, opened, quantile

from dbray.serving.http.access.tenants import new_key

NUM_MODELS = 4
STEPS = 10
_PAUSE_SECONDS = 0.05


class Flood:
    """Unfinished requests of one key, on a separate thread."""

    def __init__(self, port: int, key: str, count: int) -> None:
        self._port, self._count = port, count
        self._head = (
            "POST /v1/images/generations HTTP/1.1\r\nhost: 127.0.0.1\r\n"
            f"authorization: Bearer {key}\r\ncontent-length: 1000\r\n\r\n{{"
        ).encode()
        self.num_open = self.num_opened = 0
        self.ends: Counter[str] = Counter()
        """How the server ended them, by status."""

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the connections open for a block."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_until_complete, args=(self._run(),))
        self._over = asyncio.Event()
        thread.start()
        try:
            while self.num_opened < self._count:
                time.sleep(0.05)
            yield
        finally:
            loop.call_soon_threadsafe(self._over.set)
            thread.join()

    async def _run(self) -> None:
        holding = [asyncio.create_task(self._hold()) for _ in range(self._count)]
        await self._over.wait()
        for task in holding:
            task.cancel()
        await asyncio.gather(*holding, return_exceptions=True)

    async def _hold(self) -> None:
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            except OSError:
                self.ends["refused"] += 1
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            writer.write(self._head)
            self.num_open += 1
            self.num_opened += 1
            try:
                line = (await reader.readline()).decode().split()
                self.ends[line[1] if len(line) > 1 else "closed"] += 1
            except ConnectionError:
                self.ends["reset"] += 1
            finally:
                self.num_open -= 1
                writer.close()


def measure(client: httpx.Client, models: list[str], count: int) -> dict[str, Any]:
    """Request images and /healthz in turn: p95, longest time and statuses."""
    times: dict[str, list[float]] = {"images": [], "healthz": []}
    statuses: Counter[int] = Counter()
    for index in range(count):
        body = {"model": models[index % len(models)], "prompt": "a photo of a {subject}",
                "seed": index, "num_inference_steps": STEPS}  # fmt: skip
        for name, ask in (
            ("images", lambda body=body: client.post("/v1/images/generations", json=body)),
            ("healthz", lambda: client.get("/healthz")),
        ):
            started = time.perf_counter()
            statuses[ask().status_code] += 1
            times[name].append(1000 * (time.perf_counter() - started))
    p95 = {f"{name}_p95_ms": quantile(values, 0.95) for name, values in times.items()}
    longest = {f"{name}_longest_ms": max(values) for name, values in times.items()}
    return p95 | longest | {"statuses": dict(statuses)}


def flood(site: Site, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Measure alone, then during the flood."""
    models = [site.publish(f"model{index}", index).id for index in range(NUM_MODELS)]
    (good, good_digest), (slow, slow_digest) = new_key(), new_key()
    keys = folder / "keys.yaml"
    keys.write_text(json.dumps({"keys": [
        {"name": "good", "sha256": good_digest, "tenant": "good"},
        {"name": "slow", "sha256": slow_digest, "tenant": "slow"},
    ], "images_per_minute": {"slow": 1}}))  # fmt: skip
    bearer = {"authorization": f"Bearer {good}"}
    with (
        site.serving(keys=str(keys)),
        httpx.Client(base_url=site.client.base_url, headers=bearer, timeout=60) as client,
    ):
        measure(client, models, 20)  # loads the models
        alone = measure(client, models, args.requests)
        unfinished = Flood(site.port, slow, args.connections)
        with unfinished.held():
            beside = measure(client, models, args.requests)
            num_open = unfinished.num_open
    return {
        "connections": args.connections,
        "open_at_the_end": num_open,
        "ends": dict(unfinished.ends),
        "alone": alone,
        "beside": beside,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="miniature")
    parser.add_argument("--connections", type=int, default=600)
    parser.add_argument("--requests", type=int, default=150)
    parser.add_argument("--keep", action="store_true", help="keep the figures in results/")
    args = parser.parse_args()
    with opened(args.base) as (site, folder):
        facts = {"base": args.base} | flood(site, folder, args)
    print_table(facts)
    finish("flood", facts, args.keep)


if __name__ == "__main__":
    main()
