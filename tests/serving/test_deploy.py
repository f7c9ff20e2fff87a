"""serve/*.yaml, deployed for real from the built wheel, and `launch` until SIGTERM."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest
import yaml
from kit.processes import command_of
from kit.serving import free_port, publish

from dbray.errors import SpecError
from dbray.serving import local
from dbray.serving.http.access.tenants import is_loopback, new_key
from dbray.serving.options import ServeOptions

pytestmark = [pytest.mark.timeout(280), pytest.mark.ray]

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "serve").glob("*.yaml"))
BODY = {"model": "rex", "prompt": "a photo of {subject}", "seed": 7, "num_inference_steps": 2}

DEPLOY = """
import sys, time, ray, yaml, dbray
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient
from ray.serve.schema import ServeDeploySchema
config, wheel = yaml.safe_load(open(sys.argv[1])), sys.argv[2]
assert dbray.__file__.startswith(wheel), dbray.__file__
context = ray.init(address="local", num_cpus=8, include_dashboard=True, log_to_driver=False,
                   object_store_memory=200 * 2**20, logging_level="error")
client = ServeSubmissionClient(f"http://{context.dashboard_url}")
client.deploy_applications(ServeDeploySchema.model_validate(config).model_dump(exclude_unset=True))
while True:
    app = client.get_serve_details()["applications"]["dbray"]
    if app["status"] in ("RUNNING", "DEPLOY_FAILED"):
        break
    time.sleep(0.2)
print(app["status"], sorted(app["deployments"]), app["message"], flush=True)
sys.stdin.readline()
ray.shutdown()
"""

LAUNCH = """
import sys
from dbray.serving import launch
launch(sys.argv[1], int(sys.argv[2]), base=sys.argv[3], device="cpu", drain_seconds=60,
       max_steps=1000, on_ready=lambda url: print("ready", url, flush=True))
print("ended", flush=True)
"""


@pytest.fixture(scope="module")
def storage(tmp_path_factory, tiny_base):
    folder = tmp_path_factory.mktemp("registry")
    publish(folder, tiny_base, "rex", 1)
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The built wheel, unpacked to an otherwise empty folder."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", ".", "--no-deps", "-w", folder], cwd=ROOT, check=True)
    [built] = folder.glob("*.whl")
    target = folder / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", target, built], check=True)
    return target


def start(code, *arguments, cwd, path=None):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if path:
        environment["PYTHONPATH"] = str(path)
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=cwd, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip


def end(process):
    process.stdin.close()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_the_arguments_are_valid_options(file):
    config = yaml.safe_load(file.read_text())
    [application] = config["applications"]
    assert application["import_path"] == "dbray.serving:build"
    options = ServeOptions.model_validate(application["args"])
    is_public = config["http_options"]["host"] != "127.0.0.1"
    assert bool(options.keys) == is_public


def test_the_cluster_has_the_resources_of_the_configuration():
    spec = yaml.safe_load((ROOT / "cluster" / "kuberay" / "rayservice.yaml").read_text())["spec"]
    [application] = yaml.safe_load(spec["serveConfigV2"])["applications"]
    options = ServeOptions.model_validate(application["args"])
    cluster = spec["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        [container] = pod["containers"]
        mounts = container["volumeMounts"]
        assert {m["name"] for m in mounts} == {volume["name"] for volume in pod["volumes"]}
        for path in (options.base, options.keys):
            assert any(Path(path).is_relative_to(m["mountPath"]) for m in mounts), path


STOPPED_AT_THE_START = """
import os, signal, sys, time
from dbray.serving import launch, local

def start(*_):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)

local.start = start
launch(sys.argv[1], base=sys.argv[2], on_ready=lambda url: print("ready", flush=True))
print("ended", signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, flush=True)
"""


def test_a_signal_ends_a_server_that_is_starting(storage, tiny_base, tmp_path):
    process = start(STOPPED_AT_THE_START, storage, tiny_base, cwd=tmp_path)
    try:
        assert process.stdout.read() == "ended True\n"
    finally:
        end(process)


@pytest.fixture
def no_ray(monkeypatch):
    """Ray is not running, and must not be started."""
    monkeypatch.setattr(local.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(local.ray, "init", lambda **_: pytest.fail("Ray was started"))


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_port_in_use_is_reported_before_anything_starts(no_ray, is_shared):
    with socket.create_server(("127.0.0.1", 0), reuse_port=is_shared) as other:
        port = other.getsockname()[1]
        with pytest.raises(SpecError, match=f"port {port} .* is in use\n.*--port"):
            local.start(ServeOptions(registry="r"), port)


def test_an_invalid_port_is_reported(no_ray):
    with pytest.raises(SpecError, match=r"port 99999 .*0-65535"):
        local.start(ServeOptions(registry="r"), 99999)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["local", "production"])
def test_a_configuration_deploys_from_the_wheel(name, wheel, storage, tiny_base, tmp_path):
    key, digest = new_key()
    keys = tmp_path / "keys.yaml"
    keys.write_text(json.dumps({"keys": [{"name": "k", "sha256": digest, "tenant": "t"}]}))
    config = yaml.safe_load((ROOT / "serve" / f"{name}.yaml").read_text())
    here = {"registry": str(storage), "base": str(tiny_base), "device": "cpu"}
    arguments = config["applications"][0]["args"]
    local = {"keys": str(keys), "scratch": str(tmp_path / "scratch")}
    arguments |= here | {name: path for name, path in local.items() if name in arguments}
    port = free_port()
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    process = start(DEPLOY, file, wheel, cwd=tmp_path, path=wheel)
    try:
        line = process.stdout.readline()
        assert line.startswith("RUNNING ['Ingress', 'Model', 'Predictions']"), line
        headers = {"authorization": f"Bearer {key}"}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            assert client.get("/readyz").status_code == 200
            assert client.get("/playground/app.js").status_code == 200
            answer = client.post("/v1/images/generations", json=BODY, headers=headers)
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-dbray-cache"] == "disk"
            without = client.post("/v1/images/generations", json=BODY)
            assert without.status_code == (401 if "keys" in arguments else 200)
    finally:
        end(process)


def addresses_of(process):
    """Return the addresses on which a process's descendants listen: metrics, dashboard, all.

    Except for replicas: Ray Serve binds a port of each to every interface, whatever is set.
    """
    found = set()
    for one in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.Error):
            if "ServeReplica" not in command_of(one):
                connections = one.net_connections("inet")
                found |= {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN}
    return found


def test_launch_listens_on_loopback_and_finishes_running_requests(storage, tiny_base, tmp_path):
    port = free_port()
    process = start(LAUNCH, storage, port, tiny_base, cwd=tmp_path)
    try:
        assert process.stdout.readline() == f"ready http://127.0.0.1:{port}\n"
        assert [one for one in addresses_of(process) if not is_loopback(one)] == []
        answers = []

        def ask(**changes):
            url = f"http://127.0.0.1:{port}/v1/images/generations"
            answers.append(httpx.post(url, json=BODY | changes, timeout=120))

        slow = threading.Thread(target=ask, kwargs={"num_inference_steps": 500, "n": 4})
        slow.start()
        while "disk" not in httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        while True:  # until the server has handled the signal
            late = httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=30)
            if late.status_code == 503:
                break
        assert late.json()["error"]["code"] == "draining"
        assert late.headers["retry-after"]
        slow.join()
        assert [answer.status_code for answer in answers] == [200]
        assert process.stdout.read().endswith("ended\n")
        assert process.wait(60) == 0
    finally:
        end(process)
