"""Shared parts of benchmarks: drawn subjects, commit and hardware, printing and keeping results."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from dbray.miniature import world

_VERSIONED = ("dbray", "torch", "diffusers", "transformers", "ray", "deepspeed")
ROOT = Path(__file__).resolve().parent.parent


def write_subjects(folder: Path, num_subjects: int, num_class_nouns: int) -> None:
    """Write photographs of drawn subjects, a folder each, with their class nouns."""
    for subject_id, noun in world.write_photographs(folder, num_subjects, num_class_nouns):
        (folder / subject_id / "class.txt").write_text(noun)


def surroundings() -> dict[str, Any]:
    """Commit, versions and hardware."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )  # fmt: skip
    return {
        "commit": commit.stdout.strip() or None,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": dict(_versions()),
        "python": platform.python_version(),
        "hardware": hardware(),
    }


def _versions() -> Iterator[tuple[str, str]]:
    """Versions of the packages that decide a figure, of those that are installed."""
    for name in _VERSIONED:
        with contextlib.suppress(metadata.PackageNotFoundError):
            yield name, metadata.version(name)


def hardware() -> str:
    """Number and model of this machine's processors."""
    processor = next(
        (line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")), platform.processor(),
    )  # fmt: skip
    return f"{os.cpu_count()} x {processor}"


def print_table(rows: dict[str, Any]) -> None:
    """Print names and figures, one per line."""
    width = max(map(len, rows))
    for name, value in rows.items():
        text = f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
        print(f"{name:<{width}}  {text}")


def finish(name: str, facts: dict[str, Any], keep: bool) -> None:
    """Print the JSON line; with `keep`, also write it to benchmarks/results/."""
    line = json.dumps({"benchmark": name, **surroundings(), **facts})
    if keep:
        folder = ROOT / "benchmarks" / "results"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.json").write_text(line + "\n")
    print(line)
