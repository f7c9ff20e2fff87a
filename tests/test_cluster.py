"""The files in cluster/ match the code that they deploy."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from dbray import errors
from dbray.cli import _parser
from dbray.serving.http.access import edge
from dbray.serving.options import ServeOptions
from dbray.spec.resources import Resources

ROOT = Path(__file__).resolve().parent.parent
KUBERAY = ROOT / "cluster" / "kuberay"
DOCKERFILE = (ROOT / "cluster" / "Dockerfile").read_text()
PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if "==" in line and not line.startswith("#")
)


MANIFESTS = pytest.mark.parametrize("name", ["rayjob.yaml", "rayservice.yaml"])


def cluster_of(text):
    spec = yaml.safe_load(text)["spec"]
    return spec.get("rayClusterSpec") or spec["rayClusterConfig"]


def pods_of(cluster):
    groups = (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
    return [group["template"]["spec"] for group in groups]


def instructions():
    """Return the Dockerfile's instructions as (keyword, rest); continued lines are joined."""
    lines = DOCKERFILE.replace("\\\n", " ").splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line and line[0] != "#"]


def entrypoint():
    return shlex.split(yaml.safe_load((KUBERAY / "rayjob.yaml").read_text())["spec"]["entrypoint"])


def program(folder, name, script):
    """Write a program `name` to `folder`, which replaces the real one."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@MANIFESTS
def test_clusters_run_the_pinned_ray_with_a_token_and_an_idle_head(name):
    cluster = cluster_of((KUBERAY / name).read_text())
    assert cluster["rayVersion"] == PINS["ray"]
    assert cluster["authOptions"]["mode"] == "token"
    secret = yaml.safe_load((KUBERAY / "secret.example.yaml").read_text())
    assert cluster["authOptions"]["secretName"] == secret["metadata"]["name"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for pod in pods_of(cluster):
        [container] = pod["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]


@MANIFESTS
def test_every_pod_has_commented_out_credentials(name):
    text = (KUBERAY / name).read_text()
    for pod in pods_of(cluster_of(re.sub(r"# (serviceAccountName|envFrom):", r"\1:", text))):
        assert pod["serviceAccountName"]
        assert pod["containers"][0]["envFrom"][0]["secretRef"]["name"]


def test_the_readme_job_fills_the_fully_scaled_cluster():
    text = (ROOT / "cluster" / "README.md").read_text()
    [snippet] = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    asked = Resources.model_validate(yaml.safe_load(snippet)["resources"])
    [group] = cluster_of((KUBERAY / "rayjob.yaml").read_text())["workerGroupSpecs"]
    [container] = group["template"]["spec"]["containers"]
    num_gpus = group["maxReplicas"] * int(container["resources"]["limits"]["nvidia.com/gpu"])
    assert asked.device == "cuda"
    assert asked.lanes == asked.prior_actors == num_gpus // asked.gpus_per_subject


def test_the_entry_point_is_a_command():
    shell, option, script = entrypoint()
    assert (shell, option) == ("sh", "-c")
    name, *arguments = shlex.split(script.partition(";")[0])
    assert name == "dbray"
    assert _parser().parse_args(arguments).max_failures == 100


def end_of_entrypoint(tmp_path, code):
    """Return the exit code of the job's driver if dbray's is `code`."""
    program(tmp_path, "dbray", f"exit {code}")
    # As `ray job submit` passes it on: joined again, and run by a shell.
    return subprocess.run(
        ["sh", "-c", shlex.join(entrypoint())], env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    ).returncode


FINISHED_WITH_FAILED_SUBJECTS, INTERRUPTED, KILLED = 3, 130, 137


@pytest.mark.parametrize(
    "code",
    [
        0,
        errors.SpecError.exit_code,
        errors.BaseError.exit_code,
        FINISHED_WITH_FAILED_SUBJECTS,
        errors.TooManyFailures.exit_code,
    ],
)
def test_permanent_exit_codes_are_not_retried(code, tmp_path):
    assert end_of_entrypoint(tmp_path, code) == 0


@pytest.mark.parametrize(
    "code",
    [
        errors.DbrayError.exit_code,
        errors.StoreError.exit_code,
        # A killed run seems to hold its job on an object store for two minutes.
        errors.JobBusy.exit_code,
        INTERRUPTED,
        KILLED,
    ],
)
def test_temporary_exit_codes_are_retried(code, tmp_path):
    spec = yaml.safe_load((KUBERAY / "rayjob.yaml").read_text())["spec"]
    assert spec["backoffLimit"] > 0
    assert end_of_entrypoint(tmp_path, code) == code != 0


def test_the_service_deploys_the_application_in_serve():
    service = yaml.safe_load((KUBERAY / "rayservice.yaml").read_text())["spec"]["serveConfigV2"]
    production = yaml.safe_load((ROOT / "serve" / "production.yaml").read_text())
    deployed = yaml.safe_load(service)
    assert deployed["applications"] == production["applications"]
    module, function = deployed["applications"][0]["import_path"].split(":")
    assert callable(getattr(importlib.import_module(module), function))


def gib(quantity):
    assert quantity.endswith("Gi")
    return int(quantity.removesuffix("Gi"))


def test_the_scratch_volume_holds_the_local_copies():
    spec = yaml.safe_load((KUBERAY / "rayservice.yaml").read_text())["spec"]
    [application] = yaml.safe_load(spec["serveConfigV2"])["applications"]
    options = ServeOptions.model_validate(application["args"])
    [worker] = [group["template"]["spec"] for group in spec["rayClusterConfig"]["workerGroupSpecs"]]
    [container] = worker["containers"]
    [mount] = [m for m in container["volumeMounts"] if m["mountPath"] == options.scratch]
    [volume] = [v for v in worker["volumes"] if v["name"] == mount["name"]]
    limit = gib(volume["emptyDir"]["sizeLimit"])
    assert options.disk_gib < limit < gib(container["resources"]["requests"]["ephemeral-storage"])


def test_an_old_cluster_is_deleted_after_its_requests_end():
    spec = yaml.safe_load((KUBERAY / "rayservice.yaml").read_text())["spec"]
    [application] = yaml.safe_load(spec["serveConfigV2"])["applications"]
    options = ServeOptions.model_validate(application["args"])
    assert spec["rayClusterDeletionDelaySeconds"] > options.deadline_seconds


def test_the_image_never_runs_as_root():
    users = [rest for keyword, rest in instructions() if keyword == "USER"]
    assert users[-1:] != ["root"]
    assert users


def test_the_image_contains_the_probe_command_of_kuberay():
    [install] = [rest for keyword, rest in instructions() if "apt-get install" in rest]
    assert "wget" in install.split()
    assert "--no-install-recommends" in install
    assert "rm -rf /var/lib/apt/lists/*" in install


def test_the_image_has_the_environment_that_serving_needs():
    [settings] = [rest for keyword, rest in instructions() if keyword == "ENV"]
    found = dict(setting.split("=", 1) for setting in settings.split())
    assert edge.ENVIRONMENT.items() <= found.items()
    assert found["OMP_WAIT_POLICY"] == "PASSIVE"


def test_the_image_installs_dependencies_before_code(tmp_path):
    """Run the Dockerfile's steps with a pip that only prints its arguments."""
    image, bin_ = tmp_path / "image", tmp_path / "bin"
    image.mkdir()
    program(bin_, "pip", 'echo "$@"; test ! -e requirements.txt || cat requirements.txt')
    program(bin_, "python", f'exec {sys.executable} "$@"')
    calls = []
    for keyword, rest in instructions():
        if keyword == "COPY":
            *sources, target = rest.split()
            for source in sources:
                if (ROOT / source).is_dir():
                    (image / target).mkdir()
                else:
                    shutil.copy(ROOT / source, image / target)
        if keyword == "RUN" and "pip install" in rest:
            path = f"{bin_}:{os.environ['PATH']}"
            ran = subprocess.run(
                ["sh", "-c", rest], cwd=image, env={"PATH": path},
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            calls.append((ran.stdout.splitlines(), (image / "dbray").exists()))
    (heavy, has_code), (light, _) = calls
    assert not has_code
    assert "-c constraints.txt -r requirements.txt" in heavy[0]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert heavy[1:] == project["dependencies"]
    assert light[0].endswith("--no-deps .")


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("serve/README.md", "Without a running Ray"),
        ("serve/local.yaml", "ray start --head"),
    ],
)
def test_commands_enable_the_token(file, command):
    """Ray's job and serve clients send the token in this mode only."""
    before, found, _ = (ROOT / file).read_text().partition(command)
    assert found
    assert re.search(r"export .*RAY_AUTH_MODE=token", before)
