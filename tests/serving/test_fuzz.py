"""The server behaves as /openapi.json describes: schemathesis makes requests from it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from kit.server import Server
from kit.serving import add_previews, publish

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MAX_EXAMPLES = 25
"""Requests of each kind for each operation."""


@pytest.fixture
def server(tmp_path, tiny_base):
    """A server whose images take few steps."""
    storage = tmp_path / "registry"
    add_previews(storage, publish(storage, tiny_base, "rex", 1))
    server = Server(storage, tiny_base, tmp_path, max_steps=2)
    yield server
    server.close()


def test_the_schema_and_the_server_agree(server, tmp_path):
    command = [
        Path(sys.executable).with_name("schemathesis"), "run", f"{server.url}/openapi.json",
        "--checks", "all", "--max-examples", str(MAX_EXAMPLES), "--seed", "0",
        "--header", f"Authorization: Bearer {server.keys['boss']}",
        "--request-timeout", "60", "--no-color",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
