"""The main job on real photographs: the 30 subjects of the google/dreambooth dataset.

    python benchmarks/dreambooth.py PATH-TO-dreambooth [-o FOLDER] [--keep]

On the miniature, at 64 px. Prints the times of the job, and the path of its report.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import yaml
from measure import finish, print_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photographs", help="folder with dataset/<subject>/NN.jpg")
    parser.add_argument("-o", "--output", default="dreambooth", help="folder of the job")
    parser.add_argument("--keep", action="store_true", help="keep the figures in results/")
    args = parser.parse_args()
    folder = Path(args.output).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    job = {"base": "miniature", "subjects": str(Path(args.photographs).resolve())}
    (folder / "dreambooth.yaml").write_text(yaml.safe_dump(job))
    start = time.perf_counter()
    command = [sys.executable, "-m", "dbray", "run", str(folder / "dreambooth.yaml")]
    subprocess.run(command, check=True)
    wall = time.perf_counter() - start
    runs = folder / "runs"
    journal = runs / "jobs" / "dreambooth"
    summary = json.loads((journal / "summary.json").read_text())
    rows = [json.loads(line) for line in (journal / "results.jsonl").read_text().splitlines()]
    timings = [row["timings"] for row in rows if row["timings"]]
    facts = {
        "counts": summary["counts"],
        "prior_sets": len(list((runs / "priors").glob("*/_COMMITTED"))),
        "prior_images": summary["prior_images"],
        "prior_images_per_second": summary["prior_images_per_second"],
        "train_steps": summary["train_steps"],
        "lanes": summary["lanes"],
        "wall_seconds": round(wall, 1),
        "phase_seconds": summary["phase_seconds"],
        "subjects_per_hour": summary["subjects_per_hour"],
        "overhead_seconds_median": round(
            statistics.median(sum(one.values()) - one["train"] for one in timings), 3
        ),
        "report_bytes": (journal / "report.html").stat().st_size,
    }
    print_table(facts)
    finish("dreambooth", facts, args.keep)


if __name__ == "__main__":
    main()
