"""The cluster's files agree with the code that they deploy."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
import yaml

from dbray.cli import _parser
from dbray.spec import Resources

ROOT = Path(__file__).resolve().parent.parent
KUBERAY = ROOT / "cluster" / "kuberay"
PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if "==" in line and not line.startswith("#")
)


def cluster_of(name):
    spec = yaml.safe_load((KUBERAY / name).read_text())["spec"]
    return spec.get("rayClusterSpec") or spec["rayClusterConfig"]


@pytest.mark.parametrize("name", ["rayjob.yaml", "rayservice.yaml"])
def test_clusters_run_the_pinned_ray_with_a_token_and_an_idle_head(name):
    cluster = cluster_of(name)
    assert cluster["rayVersion"] == PINS["ray"]
    assert cluster["authOptions"]["mode"] == "token"
    secret = yaml.safe_load((KUBERAY / "secret.example.yaml").read_text())
    assert cluster["authOptions"]["secretName"] == secret["metadata"]["name"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        [container] = group["template"]["spec"]["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]


def test_the_job_of_the_readme_fills_the_cluster_when_it_has_grown():
    text = (ROOT / "cluster" / "README.md").read_text()
    [snippet] = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    asked = Resources.model_validate(yaml.safe_load(snippet)["resources"])
    [group] = cluster_of("rayjob.yaml")["workerGroupSpecs"]
    [container] = group["template"]["spec"]["containers"]
    num_gpus = group["maxReplicas"] * int(container["resources"]["limits"]["nvidia.com/gpu"])
    assert asked.device == "cuda"
    assert asked.lanes == asked.prior_actors == num_gpus // asked.gpus_per_subject


def test_the_entry_point_is_a_command():
    spec = yaml.safe_load((KUBERAY / "rayjob.yaml").read_text())["spec"]
    program, *arguments = shlex.split(spec["entrypoint"])
    assert program == "dbray"
    assert _parser().parse_args(arguments).max_failures == 100


def test_the_service_is_the_application_of_serve():
    service = yaml.safe_load((KUBERAY / "rayservice.yaml").read_text())["spec"]["serveConfigV2"]
    production = yaml.safe_load((ROOT / "serve" / "production.yaml").read_text())
    deployed = yaml.safe_load(service)
    assert deployed["applications"] == production["applications"]
    module, function = deployed["applications"][0]["import_path"].split(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_the_image_never_runs_as_root():
    lines = (ROOT / "cluster" / "Dockerfile").read_text().splitlines()
    users = [line for line in lines if line.startswith("USER ")]
    assert users[-1:] != ["USER root"]
    assert users
