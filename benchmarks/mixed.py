"""What do mixed batches gain? Many low-rank models under load, with mixing and without.

    python benchmarks/mixed.py [--models 200] [--clients 32] [--requests 640] [--keep]
    python benchmarks/mixed.py --device cuda --batch 32 [--keep]   # in mixed-gpu.json

Starts a real server on a registry of LoRAs of the base with random factors: untrained, but of real
size. Clients request one image each, one after the other, of models drawn from Zipf(1.1): with
mixing and with a swap of the weights for every model (`mix: false`), all else equal. Images of the
same model and seed are compared with those drawn alone. Measure on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import io
import os
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import ray
import torch
from measure import finish, print_table
from PIL import Image
from ray import serve  # noqa: TID251 - the server is started and stopped
from safetensors.torch import save

from dbray import bases
from dbray.method import lora
from dbray.method.factors import Factors, to_published
from dbray.records.models import ModelRecord, Registry
from dbray.serving.local import start
from dbray.serving.options import ServeOptions
from dbray.spec.recipe import Recipe
from dbray.spec.sections import Prior
from dbray.storage.store import Store

ZIPF = 1.1
RANK = 16
PROMPT = "a photo of a {subject} on the beach"


@dataclass(frozen=True)
class Load:
    """The traffic, equal for both ways of serving."""

    clients: int
    requests: int
    steps: int
    names: tuple[str, ...]

    def drawn(self) -> list[tuple[str, int]]:
        """Return a model and a seed for each request."""
        weights = [1 / (rank + 1) ** ZIPF for rank in range(len(self.names))]
        chosen = random.Random(0).choices(self.names, weights, k=self.requests)
        return [(name, index % 3) for index, name in enumerate(chosen)]


def random_lora(base: bases.Base, seed: int) -> bytes:
    """Return a LoRA's file: the family's default targets, as large as a trained one."""
    family, draw = base.family, torch.Generator().manual_seed(seed)
    ends = tuple(end for group in family.default_targets for end in family.targets[group])
    factors = {}
    for name, shape in base.layout.shapes(family.denoiser).items():
        path = name.removesuffix(".weight")
        if path != name and any(path.endswith(f".{end}") for end in ends):
            down = torch.randn(RANK, *shape[1:], generator=draw).half()
            up = (0.01 * torch.randn(shape[0], RANK, generator=draw)).half()
            shaped = up.view(shape[0], RANK, *(1,) * (len(shape) - 2))
            factors[f"{family.denoiser}.{path}"] = Factors(down, shaped, alpha=RANK)
    return save(*to_published(factors))


def publish(registry: Registry, base: bases.Base, seed: int) -> str:
    """Publish one model; returns its id."""
    name, content = f"zipf{seed}", random_lora(base, seed)
    fingerprint = hashlib.sha256(content).hexdigest()
    created = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=seed)
    record = ModelRecord(
        id=name, revision=fingerprint[:12], fingerprint=fingerprint, class_noun="dog",
        identifier="zx", base=base.name, base_digest=base.digest, seed=seed, image_digests=(),
        recipe=Recipe.model_validate({"method": {"kind": "lora", "rank": RANK}}), prior=Prior(),
        prior_digest=None, versions={}, timings={}, steps=0, files=(lora.FILE,),
        created_at=created.isoformat(), job_id="benchmark",
        metadata={"random": "yes: not trained, for load tests"},
    )  # fmt: skip
    registry.publish(record, {lora.FILE: content})
    return name


class Site:
    """A registry of random LoRAs, and its server."""

    def __init__(self, base: str, folder: Path) -> None:
        self.base = bases.resolve(base)
        self.storage = str(folder / "runs")
        self.url = f"http://127.0.0.1:{18000 + os.getpid() % 10_000}"

    def publish(self, count: int) -> tuple[str, ...]:
        """Publish models; returns their ids."""
        registry = Registry(Store(self.storage))
        return tuple(publish(registry, self.base, seed) for seed in range(count))

    @contextlib.contextmanager
    def serving(self, **options: Any) -> Iterator[None]:
        """Serve for a block."""
        usual = {"sweep_seconds": 600, "deadline_seconds": 600, "max_steps": 1000}
        limits = {"max_queued_images": 256, "max_tenant_images": 256}
        given = ServeOptions.model_validate(
            {"registry": self.storage, "base": self.base.name} | usual | limits | options
        )
        start(given, int(self.url.rpartition(":")[2]))
        try:
            yield
        finally:
            serve.delete("dbray")

    def draw(self, client: httpx.Client, name: str, seed: int, steps: int) -> np.ndarray:
        """Request one image."""
        body = {"prompt": PROMPT, "seed": seed, "num_inference_steps": steps, "model": name}
        response = client.post(f"{self.url}/v1/images/generations", json=body)
        assert response.status_code == 200, response.text
        data = base64.b64decode(response.json()["data"][0]["b64_json"])
        return np.asarray(Image.open(io.BytesIO(data)), dtype=int)


Images = dict[tuple[str, int], list[np.ndarray]]


def loaded(site: Site, load: Load) -> tuple[dict[str, Any], Images]:
    """Send the traffic; return images per second, the longest waits, and the images."""
    drawn, images = load.drawn(), defaultdict[tuple[str, int], list[np.ndarray]](list)
    waits = defaultdict[str, float](float)
    with httpx.Client(timeout=900, limits=httpx.Limits(max_connections=load.clients)) as client:

        def request(key: tuple[str, int]) -> None:
            begun = time.perf_counter()
            images[key].append(site.draw(client, *key, load.steps))
            waits[key[0]] = max(waits[key[0]], time.perf_counter() - begun)

        for name in load.names[:2]:
            site.draw(client, name, 0, load.steps)  # warm-up, outside the clock
        with ThreadPoolExecutor(load.clients) as pool:
            started = time.perf_counter()
            list(pool.map(request, drawn))
            seconds = time.perf_counter() - started
    longest = sorted(waits.values())
    facts = {
        "images_per_second": len(drawn) / seconds,
        "models_requested": len(longest),
        "longest_wait_s": longest[-1],
        "median_of_longest_waits_s": longest[len(longest) // 2],
    }
    return facts, images


def difference(site: Site, images: Images, steps: int, count: int) -> int:
    """Return the largest difference of a pixel, of 255, to the same image drawn alone."""
    most = 0
    with httpx.Client(timeout=900) as client:
        for key in random.Random(1).sample(sorted(images), min(count, len(images))):
            alone = site.draw(client, *key, steps)
            most = max(most, *(int(np.abs(image - alone).max()) for image in images[key]))
    return most


def measured(site: Site, load: Load, args: argparse.Namespace, mix: bool) -> dict[str, Any]:
    """Serve the traffic one way."""
    names = ("device", "threads", "precision")
    options = {name: getattr(args, name) for name in names} | {"batch_images": args.batch}
    with site.serving(mix=mix, **options):
        facts, images = loaded(site, load)
        return facts | {"most_levels_of_255": difference(site, images, load.steps, args.compared)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="miniature")
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=640)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=16, help="images of a batch")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=2, help="threads of the replica")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--compared", type=int, default=40, help="images also drawn alone")
    parser.add_argument("--keep", action="store_true", help="keep the figures in results/")
    args = parser.parse_args()
    facts: dict[str, Any] = {name: value for name, value in vars(args).items() if name != "keep"}
    on_gpu = args.device == "cuda"
    facts |= {"hardware": torch.cuda.get_device_name()} if on_gpu else {}
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        try:
            site = Site(args.base, Path(folder))
            load = Load(args.clients, args.requests, args.steps, site.publish(args.models))
            for name, mix in (("mixed", True), ("swapping", False)):
                facts[name] = measured(site, load, args, mix)
                print_table({f"{name}: {key}": value for key, value in facts[name].items()})
        finally:
            serve.shutdown()
            ray.shutdown()
    rates = [facts[name]["images_per_second"] for name in ("mixed", "swapping")]
    facts["gain"] = rates[0] / rates[1]
    print_table({"gain": facts["gain"]})
    finish("mixed-gpu" if on_gpu else "mixed", facts, args.keep)


if __name__ == "__main__":
    main()
