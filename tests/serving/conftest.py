"""One real Ray Serve for all tests of serving."""

from __future__ import annotations

import pytest
from kit.serving import Site, add_previews, free_port, perturbed, publish


@pytest.fixture(scope="session")
def site(ray_session, tiny_base, tmp_path_factory):
    """One server with two replicas, room for two models on the device and four in RAM."""
    from ray import serve

    from dbray.serving.local import start
    from dbray.serving.options import GIB, ServeOptions

    storage = tmp_path_factory.mktemp("registry")
    for seed, name in enumerate(("rex", "mia", "tom")):
        add_previews(storage, publish(storage, tiny_base, name, seed))
    half = len(perturbed(tiny_base, 0))
    port = free_port()
    options = ServeOptions(
        registry=str(storage), base=str(tiny_base), num_replicas=2, device="cpu",
        device_gib=2.5 * 2 * half / GIB, ram_gib=4.5 * half / GIB, max_steps=1000,
        sweep_seconds=0.5, drain_seconds=5, max_queued_images=12, max_tenant_images=12,
    )  # fmt: skip
    start(options, port)
    yield Site(f"http://127.0.0.1:{port}", storage, tiny_base)
    serve.shutdown()
