"""What does a kill cost? SIGKILL of the driver, a lane worker or a prior actor at random moments.

    python benchmarks/kills.py [--rounds 5] [--subjects 4] [--steps 90] [--seed 0] [--keep]
    python benchmarks/kills.py --nodes 3 [--rounds 5] ...    # SIGKILL of worker nodes instead
    python benchmarks/kills.py --pack 2 ...                  # two subjects in each lane, by lora

After each kill the job is run again until it has ended, and compared with an undisturbed run: each
subject is published exactly once, what was published before the kill is unchanged, and all weights
are bitwise equal. The driver is killed after a subject was published: earlier, there is nothing to
change.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nodes
import psutil
import yaml
from measure import finish, print_table, write_subjects

DRIVER = "driver"
VICTIMS = {DRIVER: "", "lane worker": "RayTrainWorker", "prior actor": "PartActor"}
_DEADLINE_SECONDS = 300.0


def prepare(folder: Path, args: argparse.Namespace) -> Path:
    """Write the photographs once; returns the job file of a fresh storage."""
    photos = folder.parent / "photos"
    if not photos.exists():
        write_subjects(photos, args.subjects, 2)
    folder.mkdir()
    recipe = {"learning_rate": 1e-4}
    if args.pack > 1:
        recipe = {"method": {"kind": "lora", "rank": 8}, "learning_rate": 1e-3}
    job = {
        "base": args.base,
        "subjects": str(photos),
        "recipe": recipe | {"steps": args.steps},
        "prior": {"count": 48, "steps": 10},
        "previews": {"prompts": []},
        "scoring": {"embedder": None, "clip": None},
        "resources": {"checkpoint_every": args.steps // 3, "pack": args.pack},
    }
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(job))
    return file


def start(job: Path) -> psutil.Popen:
    """Start the job in a process of its own."""
    with (job.parent / "log.txt").open("a") as log:
        return psutil.Popen(
            [sys.executable, "-m", "dbray", "run", str(job)], stdout=log, stderr=log
        )


def run(job: Path) -> float:
    """Run the job to its end. Returns seconds."""
    began = time.monotonic()
    code = start(job).wait(_DEADLINE_SECONDS)
    if code != 0:
        raise SystemExit(f"the job ended with {code}:\n{(job.parent / 'log.txt').read_text()}")
    return time.monotonic() - began


def published(job: Path) -> dict[str, str]:
    """Digest of the weights, and of the record, of every published revision."""
    found = {}
    for marker in (job.parent / "runs" / "models").glob("*/*/_COMMITTED"):
        name = "/".join(marker.parts[-3:-1])
        for file in (*marker.parent.glob("*.safetensors"), marker.parent / "model.json"):
            found[f"{name}/{file.name}"] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def weights(of: dict[str, str]) -> dict[str, str]:
    """Only the weights: records contain times."""
    return {name: value for name, value in of.items() if name.endswith(".safetensors")}


def num_published(of: dict[str, str]) -> int:
    """Number of published revisions."""
    return sum(name.endswith("model.json") for name in of)


def alive(process: psutil.Process) -> bool:
    """Whether it is running; one that has ended is a zombie until it is waited for."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def find(process: psutil.Popen, job: Path, victim: str) -> psutil.Process | None:
    """The process to kill, if it exists; the driver, once it has published a subject."""
    if victim == DRIVER:
        lines = (job.parent / "log.txt").read_text(errors="replace").splitlines()
        return process if any(line.startswith("published ") for line in lines) else None
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in process.children(recursive=True):
            if VICTIMS[victim] in " ".join(child.cmdline()):
                return child
    return None


def kill(process: psutil.Popen, job: Path, victim: str, delay: float) -> bool:
    """Kill the victim `delay` seconds after its start; return whether it was still running."""
    found = None
    while found is None and alive(process):
        found = find(process, job, victim)
        time.sleep(0.05)
    time.sleep(delay)
    if found is None or not alive(found):
        return False
    with contextlib.suppress(psutil.NoSuchProcess):
        found.kill()
        return True
    return False


def one_round(folder: Path, args: argparse.Namespace, victim: str, delay: float,
              wanted: dict[str, str]) -> dict[str, Any]:  # fmt: skip
    """Kill once, run again, compare."""
    job = prepare(folder, args)
    process = start(job)
    hit = kill(process, job, victim, delay)
    process.wait(_DEADLINE_SECONDS)
    before = published(job)
    seconds = run(job)
    after = published(job)
    return {
        "victim": victim,
        "delay_seconds": round(delay, 2),
        "hit": hit,
        "published_before_rerun": num_published(before),
        "rerun_seconds": round(seconds, 1),
        "each_published_once": num_published(after) == args.subjects,
        "published_untouched": all(after.get(name) == value for name, value in before.items()),
        "bitwise_equal": weights(after) == wanted,
    }


def kill_nodes(args: argparse.Namespace, rng: random.Random, folder: Path) -> None:
    """Kill every worker node of a cluster while a job runs there, which is not run again."""
    undisturbed = prepare(folder / "undisturbed", args)
    whole = nodes.run(undisturbed, args.nodes)
    wanted = weights(published(undisturbed))
    if whole.exit_code != 0:
        raise SystemExit(f"the undisturbed job ended with {whole.exit_code}")
    rounds = []
    for number in range(args.rounds):
        job = prepare(folder / f"nodes-{number}", args)
        found = nodes.run(job, args.nodes, nodes.draw(rng, args.nodes, whole.seconds))
        after = published(job)
        rounds.append(
            nodes.facts(found, job)
            | {
                "each_published_once": num_published(after) == args.subjects,
                "bitwise_equal": weights(after) == wanted,
            }
        )
        print(json.dumps(rounds[-1]), flush=True)
        if found.exit_code != 0:
            print((job.parent / "log.txt").read_text()[-4000:], file=sys.stderr)
    good = [one for one in rounds if one["exit_code"] == 0 and one["bitwise_equal"]]
    facts = {
        "nodes": args.nodes,
        "base": Path(args.base).name,
        "subjects": args.subjects,
        "steps": args.steps,
        "pack": args.pack,
        "seed": args.seed,
        "undisturbed_seconds": round(whole.seconds, 1),
        "kills": sum(len(one["kills_at_seconds"]) for one in rounds),
        "rounds_after_which_all_was_right": len(good),
        "longest_wait_seconds": max(one["longest_wait_seconds"] for one in rounds),
        "rounds": rounds,
    }
    print_table({name: value for name, value in facts.items() if name != "rounds"})
    finish("kills-nodes", facts, args.keep)
    if len(good) < len(rounds):
        raise SystemExit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="kills of each kind (default: 5)")
    parser.add_argument("--nodes", type=int, help="kill the worker nodes of so many nodes")
    parser.add_argument("--base", default="miniature")
    parser.add_argument("--subjects", type=int, default=4)
    parser.add_argument("--steps", type=int, default=90)
    parser.add_argument("--pack", type=int, default=1, help="subjects together in each lane")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="keep the figures in results/")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    if args.nodes:
        with tempfile.TemporaryDirectory() as name:
            kill_nodes(args, rng, Path(name))
        return
    rounds = []
    with tempfile.TemporaryDirectory() as name:
        undisturbed = prepare(Path(name) / "undisturbed", args)
        whole = run(undisturbed)
        wanted = weights(published(undisturbed))
        phases = json.loads(
            (
                undisturbed.parent / "runs" / "jobs" / undisturbed.parent.name / "summary.json"
            ).read_text()
        )["phase_seconds"]
        # Part of a phase is over when the victim exists: the start of processes, and for the driver
        # the first subjects.
        longest = {
            DRIVER: phases["training"] / 6,
            "lane worker": phases["training"] / 3,
            "prior actor": phases["class images"] / 3,
        }
        for victim in VICTIMS:
            for number in range(args.rounds):
                folder = Path(name) / f"{victim.replace(' ', '-')}-{number}"
                delay = rng.uniform(0, longest[victim])
                found = one_round(folder, args, victim, delay, wanted)
                if not found["hit"]:  # it had ended: once more, sooner
                    again = folder.with_name(f"{folder.name}-again")
                    found = one_round(again, args, victim, delay / 4, wanted)
                print(json.dumps(found), flush=True)
                rounds.append(found)
    laws = ("each_published_once", "published_untouched", "bitwise_equal")
    good = [one for one in rounds if all(one[law] for law in laws)]
    facts = {
        "subjects": args.subjects,
        "steps": args.steps,
        "pack": args.pack,
        "seed": args.seed,
        "undisturbed_seconds": round(whole, 1),
        "kills": len(rounds),
        "kills_that_hit": sum(one["hit"] for one in rounds),
        "kills_after_which_all_was_right": len(good),
        "rounds": rounds,
    }
    print_table({name: value for name, value in facts.items() if name != "rounds"})
    finish("kills" if args.pack == 1 else "kills-packed", facts, args.keep)
    if len(good) < len(rounds):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
