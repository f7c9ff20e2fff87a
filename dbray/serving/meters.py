"""What serving counts, for the Ray dashboard and Prometheus. No label names a subject or tenant.

Owns the names, and the text of /metrics: Ray's own exporters on every node hold the figures of
all processes; `exposition` gathers dbray's lines from them.
"""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Iterable

import ray
from ray.util.metrics import Counter, Gauge, Histogram

_SECONDS = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120]
_IMAGES: list[float] = [1, 2, 3, 4, 6, 8, 12, 16]
_PREFIX = "ray_dbray_"
# Labels without information: the same for all, or a repetition of the name.
_NOISE = re.compile(r'([{,])(?:(?:Component|SessionName|Version|otel_[a-z_]+)="[^"]*",?)+')


class RequestMeters:
    """What the ingress counts."""

    def __init__(self) -> None:
        self.requests = Counter(
            "dbray_requests", "HTTP requests answered.", tag_keys=("route", "status")
        )
        self.seconds = Histogram(
            "dbray_request_seconds",
            "Seconds from a request to its last byte.",
            boundaries=_SECONDS,
            tag_keys=("route",),
        )

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count one answer."""
        self.requests.inc(tags={"route": route, "status": str(status)})
        self.seconds.observe(seconds, tags={"route": route})


class CacheMeters:
    """What a replica's cache counts; a `tiers.Watcher`."""

    def __init__(self) -> None:
        tier = ("tier",)
        self._hits = Counter(
            "dbray_cache_hits",
            "Requests by the tier that had the weights; resident: already in the module.",
            tag_keys=tier,
        )
        self._misses = Counter(
            "dbray_cache_misses", "Requests whose weights were in no memory tier."
        )
        self._loads = Histogram(
            "dbray_cache_load_seconds", "Seconds of a load into a tier.",
            boundaries=_SECONDS, tag_keys=tier,
        )  # fmt: skip
        self._evictions = Counter("dbray_cache_evictions", "Evictions.", tag_keys=tier)
        self._bytes = Gauge("dbray_cache_bytes", "Bytes held.", tag_keys=tier)
        self._sizes: dict[str, int] = {}

    def hit(self, tier: str) -> None:
        """Count a request by where its weights were."""
        self._hits.inc(tags={"tier": tier})
        if tier in ("disk", "storage"):
            self._misses.inc()

    def load(self, tier: str, seconds: float) -> None:
        """Count a load."""
        self._loads.observe(seconds, tags={"tier": tier})

    def evict(self, tier: str) -> None:
        """Count an eviction."""
        self._evictions.inc(tags={"tier": tier})

    def size(self, tier: str, used_bytes: int) -> None:
        """Remember how much a tier holds."""
        self._sizes[tier] = used_bytes

    def beat(self) -> None:
        """Set the gauges again: Ray drops one that is not set regularly."""
        for tier, used_bytes in list(self._sizes.items()):
            self._bytes.set(used_bytes, tags={"tier": tier})


class DeviceMeters:
    """What the thread of a replica's device counts."""

    def __init__(self) -> None:
        self.images = Counter("dbray_images", "Images sampled.")
        self.batch = Histogram("dbray_batch_images", "Images per batch.", boundaries=_IMAGES)
        self.mixed = Counter(
            "dbray_mixed_batches", "Batches with factors beside the weights of the base."
        )
        self.swaps = Counter("dbray_swaps", "Swaps of the weights in the module.")
        self.queued = Gauge("dbray_queued_images", "Images waiting for the device.")
        self.queue_seconds = Histogram(
            "dbray_queue_seconds", "Seconds that a request waited.", boundaries=_SECONDS
        )


def exposition() -> str:
    """Gather dbray's metrics from the exporters of all nodes, in Prometheus text format."""
    texts = []
    for node in ray.nodes() if ray.is_initialized() else ():
        if not node.get("Alive"):
            continue
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                texts.append(response.read().decode())
        except (urllib.error.URLError, OSError):
            continue  # the figures of the other nodes still count
    return chosen(texts)


def chosen(texts: Iterable[str]) -> str:
    """Keep dbray's families, each described once and its samples together."""
    families: dict[str, tuple[list[str], list[str]]] = {}
    for text in texts:
        name = ""
        for line in text.splitlines():
            if line.startswith("#"):
                name = line.split()[2] if len(line.split()) > 2 else ""
                if name.startswith(_PREFIX):
                    head, _ = families.setdefault(name, ([], []))
                    if len(head) < 2 and line not in head:
                        head.append(line)
            elif line.startswith(_PREFIX) and name in families:
                families[name][1].append(_NOISE.sub(r"\1", line))
    lines = [line for head, samples in families.values() for line in (*head, *samples)]
    return "\n".join(lines) + "\n"
