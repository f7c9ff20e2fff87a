"""What does dbray itself cost, beside the mathematics? Many subjects of one step, and many records.

    python benchmarks/control.py --part subjects [--sizes 10 100 1000 10000] [--keep]
    python benchmarks/control.py --part first [--nouns 1 200] [--subjects 200] [--keep]
    python benchmarks/control.py --part records [--records 1000 10000 100000] [--keep]

`subjects`: jobs of steps: 1 without class images, by lora with pack: auto, published for real. The
time of a subject is that between the first lease and the end of the last subject, divided by their
number; start-up is listed beside it. `first`: the time from the start of a run to its first
published model, for several numbers of class nouns. `records`: `validate`, `plan`, `models`, and
`run` where nothing remains to be done, which plans and writes the report: seconds and peak memory
of each command. Measure on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml
from measure import finish, print_table
from PIL import Image
from safetensors.numpy import save

from dbray.lanes.beat import Clock
from dbray.lanes.publish import Publisher
from dbray.miniature.world import CLASS_NOUNS
from dbray.planning.checks import check_file
from dbray.planning.plan import make_plan
from dbray.records.results import Outcome
from dbray.repeating import repeating
from dbray.run.job import run_job
from dbray.run.watch import Silence
from dbray.storage.store import Store
from dbray.training.loop import Progress

NUM_PHOTOGRAPHS = 3
_PER_FOLDER = 1000
_LOOK_SECONDS = 0.5


def write_photographs(folder: Path, index: int) -> Iterator[str]:
    """Write a subject's photographs, all different; yields their paths. Their content is noise."""
    rng = np.random.default_rng(index)
    place = folder / f"{index // _PER_FOLDER:03d}"
    place.mkdir(parents=True, exist_ok=True)
    for number in range(NUM_PHOTOGRAPHS):
        pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
        file = place / f"{index:06d}-{number}.png"
        Image.fromarray(pixels).resize((64, 64), Image.Resampling.BILINEAR).save(file)
        yield str(file)


def nouns_of(number: int) -> list[str]:
    """So many class nouns; the miniature knows only the first ones, which does not matter here."""
    known = len(CLASS_NOUNS)
    return [f"{CLASS_NOUNS[i % known]}{f' {i // known}' * (i >= known)}" for i in range(number)]


def write_job(folder: Path, num_subjects: int, nouns: list[str], **sections: Any) -> Path:
    """Write photographs, a manifest and a job file, in a storage of its own."""
    folder.mkdir()
    with (folder / "subjects.jsonl").open("w") as manifest:
        for index in range(num_subjects):
            images = list(write_photographs(folder / "photos", index))
            row = {"id": f"s{index:06d}", "class_noun": nouns[index % len(nouns)],
                   "images": images}  # fmt: skip
            manifest.write(json.dumps(row) + "\n")
    job = {
        "base": "miniature",
        "subjects": "subjects.jsonl",
        "recipe": {"method": {"kind": "lora", "rank": 4}, "steps": 1, "learning_rate": 1e-3},
        "previews": {"prompts": []},
        "scoring": {"embedder": None, "clip": None},
        "resources": {"pack": "auto"},
    }
    for name, section in sections.items():
        job[name] = job.get(name, {}) | section
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(job))
    return file


@dataclass
class Times(Silence):
    """The times of a run: of its first lease, of the first model, and of the last subject."""

    began: float = field(default_factory=time.monotonic)
    first_lease: float | None = None
    first_model: float | None = None
    last_end: float = 0.0
    stops_at_first: bool = False

    def progress(self, phase: str, done: int, total: int, detail: str = "") -> None:  # noqa: ARG002
        """Note when the first subject is leased."""
        if phase == "training" and self.first_lease is None and (detail or done):
            self.first_lease = self._now()

    def ended(self, outcome: Outcome) -> None:
        """Note when a subject ends."""
        self.last_end = self._now()
        if self.first_model is None and outcome.is_published:
            self.first_model = self._now()
            if self.stops_at_first:
                raise KeyboardInterrupt

    def _now(self) -> float:
        return time.monotonic() - self.began


class CpuTimes:
    """CPU seconds of all processes that this one starts, by name, while the block runs."""

    def __init__(self) -> None:
        self._of_process: dict[tuple[int, float], tuple[str, float]] = {}

    def look(self) -> None:
        """Note the CPU seconds of all living processes: those of dead ones stay as last seen."""
        me = psutil.Process()
        for process in (me, *me.children(recursive=True)):
            try:
                used, name = process.cpu_times(), "driver" if process == me else title_of(process)
                seconds = used.user + used.system
                self._of_process[process.pid, process.create_time()] = name, seconds
            except psutil.Error:
                continue

    @property
    def by_name(self) -> dict[str, float]:
        """Seconds by name of process, the most first."""
        total: dict[str, float] = {}
        for name, seconds in self._of_process.values():
            total[name] = total.get(name, 0.0) + seconds
        return {name: round(total[name], 1) for name in sorted(total, key=lambda one: -total[one])}


def title_of(process: psutil.Process) -> str:
    """Name of a process; of Ray's workers that of their actor, without the method at work."""
    title = next(iter(process.cmdline()), "")
    return re.split(r"[.(]", title)[0] if title.startswith("ray::") else process.name()


def measure_subjects(folder: Path, num_subjects: int) -> dict[str, Any]:
    """Run a job of so many subjects of one step."""
    file = write_job(folder, num_subjects, nouns_of(4), recipe={"prior_weight": 0})
    cpu, times = CpuTimes(), Times()
    with repeating(cpu.look, _LOOK_SECONDS):
        result = run_job(str(file), watch=times)
    ended = times._now()
    published = [one for one in result.outcomes if one.status == "published"]
    if len(published) < num_subjects or times.first_lease is None:
        raise SystemExit(f"{num_subjects - len(published)} of {num_subjects} subjects failed")
    phases = {name for one in published for name in one.timings}
    return {
        "subjects": num_subjects,
        "seconds": round(ended, 1),
        "start_up_seconds": round(times.first_lease, 1),
        "end_seconds": round(ended - times.last_end, 2),
        "seconds_per_subject": round((times.last_end - times.first_lease) / num_subjects, 4),
        "lane_seconds_per_subject": {
            name: round(statistics.fmean(one.timings.get(name, 0.0) for one in published), 4)
            for name in sorted(phases)
        },
        "cpu_seconds": cpu.by_name,
        "lanes": result.summary.lanes,
        "pack": json.loads((file.parent / "runs/jobs/job/pack.json").read_text())["num_slots"],
    }


def measure_first(folder: Path, num_nouns: int, args: argparse.Namespace) -> dict[str, Any]:
    """Run a job until its first model is published."""
    recipe = {"steps": args.steps}
    file = write_job(folder, args.subjects, nouns_of(num_nouns), recipe=recipe,
                     prior={"count": args.count, "steps": 20})  # fmt: skip
    times = Times(stops_at_first=True)
    run_job(str(file), watch=times)
    assert times.first_model is not None
    return {"nouns": num_nouns, "first_model_seconds": round(times.first_model, 1),
            "first_lease_seconds": round(times.first_lease or 0.0, 1)}  # fmt: skip


def publish_all(file: Path) -> None:
    """Publish a model of a few bytes for every subject of a job."""
    ready = check_file(file).ready()
    store = Store(ready.job.storage)
    plan = make_plan(ready, store)
    publisher = Publisher(plan.job, plan.base)
    weights = {"adapter.safetensors": save({"weight": np.zeros(1, np.float32)})}
    for planned in plan.to_train:
        publisher.publish(planned, [(weights, Progress())], Clock())


def measure_command(*argv: str) -> dict[str, float]:
    """Seconds and peak memory of a dbray command."""
    began = time.monotonic()
    command = [sys.executable, "-m", "dbray", *argv]
    process, peak = subprocess.Popen(command, stdout=subprocess.DEVNULL), 0
    while process.poll() is None:
        peak = max(peak, peak_kibibytes(process.pid))
        time.sleep(_LOOK_SECONDS / 10)
    if process.returncode != 0:
        raise SystemExit(f"dbray {' '.join(argv)} failed")
    return {"seconds": round(time.monotonic() - began, 2), "peak_mebibytes": round(peak / 1024)}


def peak_kibibytes(pid: int) -> int:
    """Peak memory of a process so far; what wait4 reports would include that of this process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next((int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line), 0)


def measure_records(folder: Path, num_records: int) -> dict[str, Any]:
    """Time the commands that read every subject or record."""
    file = write_job(folder, num_records, nouns_of(4), recipe={"prior_weight": 0})
    job, storage, found = str(file), str(folder / "runs"), {}
    found["validate"] = measure_command("validate", job)
    found["plan before"] = measure_command("plan", job, "--json")
    publish_all(file)
    found["plan after"] = measure_command("plan", job, "--json")
    found["models"] = measure_command("models", "list", "--registry", storage, "--json")
    found["run and report"] = measure_command("run", job)
    found["report"] = measure_command("report", f"{storage}/jobs/job")
    return {"records": num_records} | found


def spread(values: list[float]) -> float:
    """How far apart values are, as a share of the smallest."""
    return round(max(values) / min(values) - 1, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", required=True, choices=["subjects", "first", "records"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000, 10_000])
    parser.add_argument("--nouns", type=int, nargs="+", default=[1, 200])
    parser.add_argument("--subjects", type=int, default=200, help="of each job of `first`")
    parser.add_argument("--count", type=int, default=64, help="class images a noun of `first`")
    parser.add_argument("--steps", type=int, default=100, help="of each subject of `first`")
    parser.add_argument("--records", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--folder", help="where jobs and storage are made and removed again")
    parser.add_argument("--keep", action="store_true", help="keep the figures in results/")
    args = parser.parse_args()
    measures: dict[str, tuple[list[int], Callable[[Path, int], dict[str, Any]]]] = {
        "subjects": (args.sizes, measure_subjects),
        "first": (args.nouns, lambda folder, number: measure_first(folder, number, args)),
        "records": (args.records, measure_records),
    }
    sizes, measure = measures[args.part]
    rows = []
    for size in sizes:
        with tempfile.TemporaryDirectory(dir=args.folder) as name:
            rows.append(measure(Path(name) / "job", size))
        print(json.dumps(rows[-1]), flush=True)
    facts: dict[str, Any] = {"part": args.part, "rows": rows}
    if args.part == "subjects":
        facts["spread"] = spread([one["seconds_per_subject"] for one in rows])
    if args.part == "first":
        facts["ratio"] = 1 + spread([one["first_model_seconds"] for one in rows])
    print_table({name: value for name, value in facts.items() if name != "rows"})
    finish(f"control-{args.part}", facts, args.keep)


if __name__ == "__main__":
    main()
