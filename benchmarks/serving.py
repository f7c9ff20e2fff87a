"""Does serving keep its promises? Each is measured on the miniature, and next to plain diffusers.

    python benchmarks/serving.py [--base miniature] [--requests 2000] [--only cold,zipf] [--keep]

Starts a real server (one replica unless a question needs two) on a registry of models that are
perturbed copies of the base's own UNet: untrained, but of real size. The peer is diffusers'
`from_pretrained` of each subject's folder, in a process that has imported it and loaded one before.
Measure on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import ray
import torch
from measure import finish, print_table
from PIL import Image
from ray import serve  # noqa: TID251 - the server is started and inspected
from safetensors.torch import load_file, save

from dbray import bases
from dbray.records.models import ModelRecord, Registry
from dbray.serving.http.access.tenants import new_key
from dbray.serving.local import start
from dbray.serving.options import GIB, ServeOptions
from dbray.spec.recipe import Recipe
from dbray.spec.sections import Prior
from dbray.storage.store import Store

STEPS = 10
PROMPT = "a photo of a {subject} on the beach"
NUM_MODELS = 200
BUDGET_MODELS = 20
NUM_PARENTS = 4
NUM_COLD = 12
ZIPF = 1.1
_published = iter(range(10**6))


def perturbed(tensors: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """Return a copy with 2 % of noise: another model of the same size."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (value.float() * (1 + 0.02 * torch.randn(value.shape, generator=generator))).half()
        for name, value in tensors.items()
    }


class Site:
    """A registry of marked, perturbed models, and its server."""

    def __init__(self, base: str, folder: Path) -> None:
        self.base = bases.resolve(base)
        self.storage = folder / "runs"
        self.registry = Registry(Store(str(self.storage)))
        [file] = (self.base.folder / "unet").glob("*.safetensors")
        parents = [perturbed(load_file(file), seed) for seed in range(NUM_PARENTS)]
        self._parents = [save(parent) for parent in parents]
        self.weights_bytes = len(self._parents[0])
        self.port = 18000 + os.getpid() % 10_000
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=120)

    def publish(self, model_id: str, seed: int) -> ModelRecord:
        """Publish parent number seed % NUM_PARENTS with one tensor changed."""
        weights = bytearray(self._parents[seed % NUM_PARENTS])
        rng = np.random.default_rng(seed)
        values = np.frombuffer(weights, np.float16, 4096, len(weights) - 8192)
        values += rng.standard_normal(4096).astype(np.float16) * np.float16(0.01)
        fingerprint = hashlib.sha256(f"{model_id} {seed}".encode()).hexdigest()
        created = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=next(_published))
        record = ModelRecord(
            id=model_id, revision=fingerprint[:12], fingerprint=fingerprint, class_noun="dog",
            identifier="zx", base=self.base.name, base_digest=self.base.digest, recipe=Recipe(),
            prior=Prior(), prior_digest=None, seed=seed, image_digests=(), versions={}, timings={},
            steps=0, files=("unet.safetensors",), created_at=created.isoformat(),
            job_id="benchmark", metadata={"perturbed": "yes: not trained, for load tests"},
        )  # fmt: skip
        self.registry.publish(record, {"unet.safetensors": bytes(weights)})
        return record

    @contextlib.contextmanager
    def serving(self, **options: Any) -> Iterator[None]:
        """Serve for a block."""
        size = self.weights_bytes / GIB
        budgets = {"device_gib": 2.02 * size * BUDGET_MODELS, "ram_gib": 1.01 * size * 60}
        start(
            ServeOptions(
                registry=str(self.storage), base=self.base.name, device="cpu",
                **({"sweep_seconds": 600, **budgets} | options),
            ),
            self.port,
        )  # fmt: skip
        try:
            yield
        finally:
            serve.delete("dbray")

    def ask(self, model: str, client: httpx.Client | None = None, **body: Any) -> httpx.Response:
        """Request one image."""
        body = {"prompt": PROMPT, "seed": 7, "num_inference_steps": STEPS, "model": model} | body
        return (client or self.client).post("/v1/images/generations", json=body)

    def figures(self) -> list[dict[str, Any]]:
        """Return the state of the replicas."""
        handle = serve.get_deployment_handle("Model", "dbray")
        results = handle.broadcast("figures").results(timeout_s=60, return_exceptions=True)
        return [result for result in results if isinstance(result, dict)]


def pixels(response: httpx.Response) -> np.ndarray:
    data = base64.b64decode(response.json()["data"][0]["b64_json"])
    return np.asarray(Image.open(io.BytesIO(data)), dtype=int)


def load_ms(response: httpx.Response) -> float:
    assert response.status_code == 200, response.text
    return float(response.headers["x-dbray-load-ms"])


def quantile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


PEER = """
import json, sys, time, torch
torch.set_num_threads(1)
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging
logging.disable_progress_bar()
times, samples = [], []
for folder in sys.argv[1:]:
    started = time.perf_counter()
    pipe = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    times.append((time.perf_counter() - started) * 1000)
print(json.dumps(times[1:]))
"""


def peer_loads(site: Site, folder: Path) -> list[float]:
    """Return the milliseconds of diffusers' from_pretrained per subject's folder."""
    folders = []
    for index in range(NUM_COLD + 1):
        target = folder / f"peer{index}"
        shutil.copytree(site.base.folder, target)
        [file] = (target / "unet").glob("*.safetensors")
        file.write_bytes(site._parents[index % NUM_PARENTS])
        folders.append(str(target))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", PEER, *folders], env=environment, check=True,
                          capture_output=True, text=True)  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def cold(site: Site, folder: Path) -> dict[str, Any]:
    """Measure loads by tier, and the overhead of HTTP and routing."""
    names = [site.publish(f"cold{index}", index).id for index in range(NUM_COLD)]
    size = 2.02 * site.weights_bytes / GIB
    with site.serving(device_gib=2 * size):
        for name in ("warmup0", "warmup1"):
            site.publish(name, 99)
            site.ask(name)
        disk = [load_ms(response) for response in map(site.ask, names)]
        again = [site.ask(name) for name in names]
        by_tier = Counter(response.headers["x-dbray-cache"] for response in again)
        ram = [
            load_ms(response) for response in again if response.headers["x-dbray-cache"] == "ram"
        ]
        http_ms = overhead(site, names[0])
    peer = peer_loads(site, folder)
    medians = {"diffusers_ms": peer, "disk_ms": disk, "ram_ms": ram}
    facts = {name: statistics.median(values) for name, values in medians.items()}
    facts["disk_of_diffusers"] = facts["disk_ms"] / facts["diffusers_ms"]
    facts["ram_of_disk"] = facts["ram_ms"] / facts["disk_ms"]
    return facts | {"second_round": dict(by_tier), "warm_overhead_ms": http_ms}


def overhead(site: Site, name: str) -> float:
    """Return the median of a warm request over HTTP minus the same in this process, in ms.

    The two are timed in pairs: the machine's pace changes by more than the overhead within a
    minute. One step suffices, as steps cost the same in both.
    """
    from dbray.serving.messages import Answer, Ask, Share
    from dbray.serving.replica.replica import Replica

    record = site.registry.find(name)
    prompt, models = PROMPT.replace("{subject}", "zx dog"), (Share(record.id, record.revision),)
    ask = Ask(models, "t", prompt, (7,), 60.0, sampling={"steps": 1})
    replica = Replica(ServeOptions(registry=str(site.storage), base=site.base.name, device="cpu"))
    differences = []
    with asyncio.Runner() as runner:
        for _ in range(70):
            started = time.perf_counter()
            answer = runner.run(replica.generate(ask))
            between = time.perf_counter()
            response = site.ask(name, num_inference_steps=1)
            ended = time.perf_counter()
            assert isinstance(answer, Answer)
            assert response.status_code == 200, response.text
            differences.append((ended - between) - (between - started))
    replica.close()
    return 1000 * statistics.median(differences[10:])


def zipf(site: Site, _folder: Path, num_requests: int) -> dict[str, Any]:
    """200 models, room for 20: hits, failures, device bytes and growth of RAM."""
    names = [site.publish(f"zipf{index}", index).id for index in range(NUM_MODELS)]
    weights = [1 / (rank + 1) ** ZIPF for rank in range(NUM_MODELS)]
    drawn = random.Random(0).choices(names, weights, k=num_requests)
    sources: Counter[str] = Counter()
    memory, most, failed = [], 0, 0
    with site.serving():
        process = psutil.Process(site.figures()[0]["pid"])
        for index, name in enumerate(drawn):
            response = site.ask(name, num_inference_steps=2)
            failed += response.status_code != 200
            sources[response.headers.get("x-dbray-cache", "none")] += 1
            if index % 50 == 49:
                held = site.figures()[0]["bytes"]
                most = max(most, held["device"])
                memory.append(process.memory_info().rss / 2**20)
    half = len(memory) // 2  # the tiers are full by then
    budget = int(2.02 * site.weights_bytes * BUDGET_MODELS)
    hits = {tier: count / num_requests for tier, count in sources.items()}
    growth = np.polyfit(range(half), memory[-half:], 1)[0] * half if half > 1 else 0.0
    return {
        "requests": num_requests, "failed": failed, "by_tier": hits,
        "device_hit_rate": hits.get("device", 0) + hits.get("resident", 0),
        "memory_hit_rate": 1 - hits.get("disk", 0),
        "device_most_bytes": most, "device_budget_bytes": budget, "within_budget": most <= budget,
        "rss_mib_half_way": memory[half], "rss_mib_at_end": memory[-1],
        "rss_growth_mib_second_half": float(growth),
    }  # fmt: skip


def flood(site: Site, _folder: Path) -> dict[str, Any]:
    """Unknown ids during good traffic: evictions, and the good traffic's p95."""
    names = [site.publish(f"good{index}", index).id for index in range(4)]

    def good(count: int) -> list[float]:
        times = []
        with httpx.Client(base_url=site.client.base_url, timeout=60) as client:
            for index in range(count):
                started = time.perf_counter()
                response = site.ask(names[index % 4], client)
                times.append(1000 * (time.perf_counter() - started))
                assert response.status_code == 200
        return times

    stop, codes = threading.Event(), Counter()

    def unknown(worker: int) -> None:
        with httpx.Client(base_url=site.client.base_url, timeout=60) as client:
            for index in range(10**6):
                if stop.wait(0.1):
                    return
                codes[site.ask(f"unknown-{worker}-{index}", client).status_code] += 1

    with site.serving():
        good(20)
        before = [figures["keys"] for figures in site.figures()]
        alone = good(150)
        with ThreadPoolExecutor(3) as pool:
            futures = [pool.submit(unknown, worker) for worker in range(3)]
            started = time.perf_counter()
            beside = good(150)
            seconds = time.perf_counter() - started
            stop.set()
            for future in futures:
                future.result()
        after = [figures["keys"] for figures in site.figures()]
    same = [{tier: set(keys) for tier, keys in held.items()} for held in (*before, *after)]
    return {
        "unknown_per_second": sum(codes.values()) / seconds, "unknown_codes": dict(codes),
        "evicted_good": same[0] != same[1], "p95_alone_ms": quantile(alone, 0.95),
        "p95_beside_ms": quantile(beside, 0.95),
        "p95_rise": quantile(beside, 0.95) / quantile(alone, 0.95) - 1,
    }  # fmt: skip


def kill(site: Site, _folder: Path) -> dict[str, Any]:
    """SIGKILL of one of two replicas under load: wrong images, failures, recovery."""
    names = [site.publish(f"kill{index}", index).id for index in range(4)]
    stop, answers = threading.Event(), []

    def load(name: str) -> None:
        with httpx.Client(base_url=site.client.base_url, timeout=120) as client:
            while not stop.is_set():
                started = time.perf_counter()
                response = site.ask(name, client)
                answers.append((started, time.perf_counter(), name, response))

    with site.serving(num_replicas=2):
        expected = {name: pixels(site.ask(name)) for name in names}
        with ThreadPoolExecutor(4) as pool:
            futures = [pool.submit(load, name) for name in names]
            time.sleep(5)
            pids = {figures["pid"] for figures in site.figures()}
            killed = time.perf_counter()
            os.kill(min(pids), signal.SIGKILL)
            while len({figures["pid"] for figures in site.figures()}) < 2:
                time.sleep(0.2)
            replaced = time.perf_counter() - killed
            time.sleep(3)
            stop.set()
            for future in futures:
                future.result()
    failed = [response for *_, response in answers if response.status_code != 200]
    served = [answer for answer in answers if answer[3].status_code == 200]
    wrong = sum(
        int(np.abs(pixels(response) - expected[name]).max()) > 1 for *_, name, response in served
    )
    # The longest wait of a caller around the kill: after it every subject is served again.
    after = [ended - max(begun, killed) for begun, ended, *_ in served if ended > killed]
    return {
        "answers": len(answers), "wrong_images": wrong, "failed": len(failed),
        "failed_retryable": sum("retry-after" in response.headers for response in failed),
        "recovered_s": max(after), "replica_replaced_s": replaced,
    }  # fmt: skip


def retrain(site: Site, _folder: Path) -> dict[str, Any]:
    """Publish repeatedly: does the next request use the new revision?"""
    fresh, images = 0, []
    with site.serving():
        for seed in range(10):
            record = site.publish("growing", 1000 + seed)
            response = site.ask("growing")
            fresh += response.headers["x-dbray-model"] == record.name
            images.append(response.json()["data"][0]["b64_json"])
    return {"publications": 10, "next_request_had_it": fresh, "different": len(set(images))}


def batch(site: Site, _folder: Path) -> dict[str, Any]:
    """Batch of 4 against 4 single requests; the same seed again."""
    site.publish("batched", 1)
    with site.serving():
        together = site.ask("batched", n=4).json()["data"]
        alone = [site.ask("batched", seed=7 + index) for index in range(4)]
        again = site.ask("batched", n=4).json()["data"]
        differences = [
            int(np.abs(np.asarray(Image.open(io.BytesIO(base64.b64decode(item["b64_json"]))),
                                  dtype=int) - pixels(single)).max())
            for item, single in zip(together, alone, strict=True)
        ]  # fmt: skip
        repeats = {site.ask("batched").json()["data"][0]["b64_json"] for _ in range(5)}
    return {
        "most_levels_of_255": max(differences),
        "same_bytes_again": together == again and len(repeats) == 1,
    }


def malformed(site: Site, folder: Path) -> dict[str, Any]:
    """Requests with 20 kinds of errors: status, error body, and content of the logs."""
    site.publish("target", 1)
    secret, (key, digest) = "ZEBRA-IN-A-SECRET-PROMPT", new_key()
    keys = folder / "keys.yaml"
    keys.write_text(f'keys: [{{name: k, sha256: "{digest}", tenant: t}}]\n')
    good = {"model": "target", "prompt": secret, "num_inference_steps": 1}
    bearer = {"authorization": f"Bearer {key}"}
    post = ("POST", "/v1/images/generations")
    cases: list[tuple[str, int, tuple[str, str], dict[str, Any]]] = [
        ("bad JSON", 400, post, {"content": b'{"prompt": '}),
        ("not an object", 400, post, {"json": [secret]}),
        ("no prompt", 400, post, {"json": {"model": "target"}}),
        ("empty prompt", 400, post, {"json": good | {"prompt": ""}}),
        ("long prompt", 400, post, {"json": good | {"prompt": "p" * 5000}}),
        ("huge n", 400, post, {"json": good | {"n": 10**9}}),
        ("n as text", 400, post, {"json": good | {"n": "2"}}),
        ("size 100000", 400, post, {"json": good | {"size": "100000x100000"}}),
        ("odd size", 400, post, {"json": good | {"size": "63x61", "strict_size": True}}),
        ("unknown field", 400, post, {"json": good | {secret.lower(): 1}}),
        ("negative seed", 400, post, {"json": good | {"seed": -1}}),
        ("too many steps", 400, post, {"json": good | {"num_inference_steps": 1000}}),
        ("NaN", 400, post, {"content": b'{"prompt": "p", "guidance_scale": NaN}'}),
        ("path traversal", 400, post, {"json": good | {"model": "../../etc/passwd"}}),
        ("traversal in the path", 404, ("GET", "/v1/models/..%2f..%2fetc%2fpasswd"), {}),
        ("unknown model", 404, post, {"json": good | {"model": "nobody"}}),
        ("50 MB body", 413, post, {"content": b"x" * 50 * 2**20}),
        ("wrong key", 401, post, {"json": good, "headers": {"authorization": "Bearer x"}}),
        ("no key", 401, post, {"json": good, "headers": {"authorization": ""}}),
        ("missing scope", 403, ("DELETE", "/v1/models/target"), {}),
        ("no such route", 404, ("GET", "/v2/images"), {}),
        ("wrong method", 405, ("PATCH", "/v1/models"), {}),
    ]
    wrong = []
    with site.serving(keys=str(keys)):
        assert site.client.post(post[1], json=good, headers=bearer).status_code == 200
        for name, status, (method, path), request in cases:
            request = {"headers": bearer} | request
            try:
                response = site.client.request(method, path, **request)
            except httpx.WriteError:  # rejected while still sending: there is a status too
                wrong.append((name, "connection closed"))
                continue
            error = response.json().get("error", {})
            if response.status_code != status or set(error) != {"message", "type", "param", "code"}:
                wrong.append((name, response.status_code))
        logs = Path(ray._private.worker._global_node.get_logs_dir_path())
        texts = [file.read_text(errors="replace") for file in logs.rglob("*") if file.is_file()]
    leaks = sum(secret.lower() in text.lower() or key in text for text in texts)
    return {"cases": len(cases), "wrong": wrong, "log_files": len(texts), "leaks": leaks}


@contextlib.contextmanager
def opened(base: str) -> Iterator[tuple[Site, Path]]:
    """Make a site in a folder of its own; end its Ray afterwards."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        try:
            yield Site(base, Path(folder)), Path(folder)
        finally:
            serve.shutdown()
            ray.shutdown()


QUESTIONS = {"cold": cold, "flood": flood, "kill": kill, "retrain": retrain, "batch": batch,
             "malformed": malformed, "zipf": zipf}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="miniature")
    parser.add_argument("--requests", type=int, default=2000, help="requests of the Zipf traffic")
    parser.add_argument("--only", default=",".join(QUESTIONS), help="comma-separated questions")
    parser.add_argument("--keep", action="store_true", help="keep the figures in results/")
    args = parser.parse_args()
    facts: dict[str, Any] = {"base": args.base, "models": "perturbed copies of the base"}
    with opened(args.base) as (site, folder):
        facts["weights_bytes"] = site.weights_bytes
        for name in args.only.split(","):
            extra = {"num_requests": args.requests} if name == "zipf" else {}
            started = time.perf_counter()
            answer = QUESTIONS[name](site, folder, **extra)
            facts[name] = answer | {"took_s": time.perf_counter() - started}
            print_table({f"{name}: {key}": value for key, value in facts[name].items()})
    finish("serving", facts, args.keep)


if __name__ == "__main__":
    main()
