"""Commands about jobs: demo, init, validate, plan, run, status, report, schema."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dbray import backbones, manifest
from dbray.errors import BaseError, Problem, SpecError
from dbray.spec import Job, Subject, parse_yaml, read_text
from dbray.store import Store

_STALE_SECONDS = 60.0

_JOB_TEMPLATE = """\
# A dbray job. `dbray schema` lists every key with its meaning; paths are relative to this file.
schema: dbray/v1
base: {base}  # miniature, a diffusers folder, or a hub id with base_revision: <commit>
subjects: {manifest}  # one line per subject: id, class_noun, images
storage: runs  # a folder, or s3://..., gs://...; models, class images and reports go there

# What is left out follows the recommendations of the base, else the paper. For example:
# recipe:
#   steps: 800
#   learning_rate: 5.0e-6
#   prior_weight: 1.0  # lambda of the prior-preservation loss
# prior:
#   count: 200  # class images per class noun, made once and shared by all its subjects
# resources:
#   gpus_per_subject: 1
#   checkpoint_every: 200  # steps; worth it where a subject takes more than a few minutes
"""


def demo(args: argparse.Namespace) -> int:
    """Draw six subjects of three class nouns, and run the main job on them."""
    from dbray.miniature import world

    folder = Path(args.output).resolve()
    subjects = world.write_photographs(folder / "photos", num_subjects=6, num_classes=3, seed=0)
    manifest.write_jsonl(
        [
            Subject(id=subject_id, class_noun=noun, images=(str(folder / "photos" / subject_id),))
            for subject_id, noun in subjects
        ],
        folder / "subjects.jsonl",
    )
    job_file = folder / "demo.yaml"
    job_file.write_text(_JOB_TEMPLATE.format(base="miniature", manifest="subjects.jsonl"))
    print(f"Wrote {len(subjects)} drawn subjects to {folder}/photos and the job {job_file}.")
    args.job, args.retry_failed, args.max_failures, args.address = str(job_file), True, None, None
    code = run(args)
    if code == 0:
        registry, model = folder / "runs", subjects[0][0]
        print("\nNow prompt one of them:")
        print(f'  dbray generate {model} "a photo of {{subject}} on the beach" -n 4 '
              f"--registry {registry}")  # fmt: skip
        print(f"  dbray serve --registry {registry}")
    return code


def init(args: argparse.Namespace) -> int:
    """Write a manifest and a job file for a folder of photographs."""
    photos, job_file = Path(args.photos), Path(args.output)
    manifest_file = job_file.with_suffix(".jsonl")
    for file in (job_file, manifest_file):
        if file.exists() and not args.force:
            fix = "choose another -o, or overwrite it with --force"
            raise SpecError([Problem("error", str(file), "exists already", fix)])
    subjects, problems = manifest.scan(photos.resolve(), args.class_noun)
    if any(problem.severity == "error" for problem in problems):
        raise SpecError(problems)
    _print_problems(problems)
    manifest.write_jsonl(subjects, manifest_file)
    job_file.write_text(_JOB_TEMPLATE.format(base=args.base, manifest=manifest_file.name))
    nouns = {subject.class_noun for subject in subjects}
    print(f"Wrote {manifest_file} ({len(subjects)} subjects, {len(nouns)} class nouns) and "
          f"{job_file}.\nNext: dbray validate {job_file} && dbray run {job_file}")  # fmt: skip
    return 0


def validate(args: argparse.Namespace) -> int:
    """List every problem of a job file, its base, its manifest and its images at once."""
    problems: list[Problem] = []
    num_subjects = 0
    source = _load_collecting(Path(args.job), problems)
    if source is not None:
        found = manifest.validate(source)
        problems += found.problems
        num_subjects = len(found.subjects)
    errors = [problem for problem in problems if problem.severity == "error"]
    if args.json:
        rows = [asdict(problem) for problem in problems]
        print(json.dumps({"ok": not errors, "subjects": num_subjects, "problems": rows}, indent=2))
        return SpecError.exit_code if errors else 0
    _print_problems(problems)
    print(f"{num_subjects} usable subject(s), {len(errors)} error(s), "
          f"{len(problems) - len(errors)} warning(s)")  # fmt: skip
    return SpecError.exit_code if errors else 0


def _load_collecting(file: Path, problems: list[Problem]) -> Any:
    """Load a job, adding its problems; returns its subjects, also where the rest is wrong."""
    try:
        job = Job.load(file)
    except SpecError as exc:
        problems += exc.problems
        try:
            data, _ = parse_yaml(read_text(file), file)
        except SpecError:
            return None
        named = data.get("subjects") if isinstance(data, dict) else None
        return str(file.resolve().parent / named) if isinstance(named, str) else None
    try:
        backbones.resolve(job.base, job.base_revision)
    except BaseError as exc:
        problems.append(Problem("error", f"{file}: base", str(exc), "change 'base'"))
    return job.subjects


def _print_problems(problems: Any) -> None:
    for problem in problems:
        print(problem)


def plan(args: argparse.Namespace) -> int:
    """Say what would run."""
    from dbray.plan import Hardware, estimate, latest_rates, make_plan

    job = Job.load(args.job)
    found = manifest.validate(job.subjects)
    if found.errors:
        raise SpecError(found.problems)
    base = backbones.resolve(job.base, job.base_revision)
    store = Store(job.storage)
    made = make_plan(job, base, found.subjects, store)
    cost = estimate(made, Hardware.local(), latest_rates(store, base.digest))
    facts = {
        "job": job.id,
        "base": base.name,
        "base_digest": base.digest,
        "subjects_to_train": [one.subject.id for one in made.to_train],
        "subjects_kept": [one.subject.id for one in made.kept],
        "identifiers": {one.subject.id: one.identifier for one in (*made.to_train, *made.kept)},
        "class_nouns": list(made.class_nouns),
        "prior_sets_to_make": [prior.class_noun for prior in made.missing_priors],
        "class_images_to_make": made.num_prior_images,
        "recipe": made.job.recipe.model_dump(),
        "prior": made.job.prior.model_dump(),
        **asdict(cost),
    }
    if args.json:
        print(json.dumps(facts, indent=2))
        return 0
    _print_problems([*found.warnings, *made.warnings])
    _print_plan(facts)
    return 0


def _print_plan(facts: dict[str, Any]) -> None:
    recipe, nouns = facts["recipe"], facts["class_nouns"]
    steps = f"{facts['train_steps']} steps ({recipe['steps']} each, method {recipe['method']}"
    rows = {
        "base": f"{facts['base']} ({facts['base_digest'][:12]})",
        "to train": f"{len(facts['subjects_to_train'])} subjects of {len(nouns)} class nouns",
        "kept": f"{len(facts['subjects_kept'])} subjects, published already",
        "class images": f"{facts['class_images_to_make']} to make, in "
        f"{len(facts['prior_sets_to_make'])} sets, by {facts['prior_actors']} actors",
        "training": f"{steps}, learning rate {recipe['learning_rate']:g}) "
        f"in {facts['lanes']} lanes",
        "memory": " + ".join(f"{size / 2**20:.0f} MiB {kind}"
                             for kind, size in facts["memory_bytes"].items()) + " per worker",
        "disk": f"{facts['storage_bytes'] / 2**20:.0f} MiB of weights",
        "time": _duration(facts["prior_seconds"], facts["train_seconds"]),
    }  # fmt: skip
    for name, value in rows.items():
        print(f"{name:<13} {value}")


def _duration(prior_seconds: float | None, train_seconds: float | None) -> str:
    if prior_seconds is None or train_seconds is None:
        return "unknown: no job on this base has finished in this storage yet"
    return (f"about {prior_seconds + train_seconds:.0f} s: {prior_seconds:.0f} s for class images, "
            f"{train_seconds:.0f} s for training, by the last job's rates")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Run a job, or continue it."""
    from dbray.cli.watch import watch
    from dbray.job import RunOptions, run_job

    job = Job.load(args.job)
    address = args.address or os.environ.get("RAY_ADDRESS")
    options = RunOptions(
        args.retry_failed, args.max_failures, address, command=f"dbray run {args.job}"
    )
    # `ray job stop` and schedulers ask with SIGTERM: end as Ctrl-C does, with the journal written.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with watch() as progress:
        result = run_job(job, options, progress)
    found = result.summary["counts"]
    print(f"\n{result.state}: {found['published']} published, {found['kept']} kept, "
          f"{found['failed']} failed, {found['cancelled']} not begun, "
          f"in {result.summary['wall_seconds']:.0f} s")  # fmt: skip
    for cause in result.summary["failures"]:
        print(f"  {cause['count']} x {cause['kind']}: {cause['example']}")
    print(f"Report: {result.report}")
    return result.exit_code


def status(args: argparse.Namespace) -> int:
    """Show the jobs of a storage: counts, rates, time left, failures by cause."""
    from dbray.journal import summaries

    store = Store(args.storage)
    while True:
        jobs = {job_id: _with_state(found) for job_id, found in summaries(store).items()}
        if args.json:
            print(json.dumps(jobs, indent=None if args.watch else 2), flush=True)
        else:
            for job_id, found in jobs.items():
                _print_status(job_id, found)
            if not jobs:
                print(f"no jobs in {args.storage}")
        if not args.watch or not any(found["state"] == "running" for found in jobs.values()):
            return 0
        time.sleep(2.0)


def _with_state(summary: dict[str, Any]) -> dict[str, Any]:
    """Add the time left; a run that has not written for long was killed."""
    updated = datetime.strptime(summary["updated_at"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    age = (datetime.now(UTC) - updated).total_seconds()
    state = summary["state"]
    if state == "running" and age > _STALE_SECONDS:
        state = "killed"
    published, left = summary["counts"]["published"], summary.get("pending")
    eta = None
    if state == "running" and published and left is not None:
        eta = round(
            (left + len(summary.get("in_flight", {}))) / summary["subjects_per_hour"] * 3600
        )
    return {**summary, "state": state, "eta_seconds": eta}


def _print_status(job_id: str, summary: dict[str, Any]) -> None:
    found = summary["counts"]
    done = found["published"] + found["kept"]
    line = f"{job_id}: {summary['state']}, {done}/{summary['num_subjects']} published"
    if found["failed"]:
        line += f", {found['failed']} failed"
    line += f", {summary['subjects_per_hour']:.0f} subjects/hour"
    if summary["eta_seconds"] is not None:
        line += f", about {summary['eta_seconds']} s left"
    print(line)
    for lane, at in summary.get("in_flight", {}).items():
        print(f"  {lane}: {at['id']} at step {at['step']}")
    for cause in summary["failures"]:
        print(f"  {cause['count']} x {cause['kind']}: {cause['example']}")
    if summary["state"] == "killed":
        print("  its process is gone; run the job again to continue it")


def report(args: argparse.Namespace) -> int:
    """Write the report of a job anew."""
    from dbray.report import build_report

    folder = Path(args.job_folder)
    if not (folder / "job.json").is_file():
        raise SpecError([Problem("error", args.job_folder, "is no folder of a job",
                                 "give <storage>/jobs/<job id>")])  # fmt: skip
    store = Store(str(folder.resolve().parents[1]))
    print(store.location(build_report(store, folder.resolve().name)))
    return 0


def schema(args: argparse.Namespace) -> int:
    """Print a JSON Schema."""
    model = Subject if args.subject else Job
    json.dump(model.model_json_schema(by_alias=True), sys.stdout, indent=2)
    print()
    return 0
