"""Fixtures: a tiny random base in the diffusers layout, and one Ray for the whole session."""

from __future__ import annotations

import os
import sys
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from kit.bases import build_tiny_base
from kit.s3 import S3Handler

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Two processes with two threads each on two cores wait for each other most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray's workers import the kit too.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
)
os.environ.setdefault("DS_ACCELERATOR", "cpu")  # tests on a GPU name theirs
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the slow tests")


_LONG = ("test_engine.py", "test_miniature.py", "test_zero.py")
"""Files that run first, as those with Ray do: at the end, a long one would run alone."""


def _uses_ray(item) -> bool:
    return item.get_closest_marker("ray") is not None or "ray_session" in item.fixturenames


def pytest_collection_modifyitems(config, items):
    long = {item.path for item in items if _uses_ray(item) or item.path.name in _LONG}
    items.sort(key=lambda item: item.path not in long)
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        if not torch.cuda.is_available():
            skip = pytest.mark.skip(reason="there is no GPU")
            for item in items:
                if item.get_closest_marker("gpu"):
                    item.add_marker(skip)
    if not config.getoption("--slow"):
        skip = pytest.mark.skip(reason="slow; run with --slow")
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(skip)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Give torch one thread: an earlier test of this process may have set another number."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory) -> Path:
    """A randomly initialised Stable Diffusion of 32 px with about 100,000 parameters."""
    return build_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def ray_session():
    """One local Ray for all tests that need one; 8 logical CPUs, so that no test waits."""
    import ray

    from dbray.serving.http.access import edge

    edge.prepare()  # as `dbray serve` does
    ray.init(
        address="local",
        num_cpus=8,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=200 * 2**20,
        logging_level="error",
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def s3_server():
    handler = type("Handler", (S3Handler,), {"objects": {}, "uploads": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server, handler.objects
    server.shutdown()


@pytest.fixture
def s3_uri(s3_server):
    server, objects = s3_server
    objects.clear()
    options = f"endpoint_override=127.0.0.1:{server.server_port}&scheme=http&region=eu-west-1"
    return f"s3://someone:verysecret@bucket/team/runs?{options}"
