"""Commands about jobs: demo, init, validate, plan, run, status, report, schema."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dbray import backbones, manifest, naming
from dbray.errors import BaseError, Problem, SpecError
from dbray.spec import Job, Subject, anchor, draft_job, is_commit
from dbray.store import Store
from dbray.texts import read_text

if TYPE_CHECKING:
    from dbray.summary import Summary

_JOB_TEMPLATE = """\
# A dbray job. `dbray schema` lists every key with its meaning; paths are relative to this file.
schema: dbray/v1
base: {base}  # miniature, a diffusers folder, or a hub id with base_revision: <commit>{revision}
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
    job_file.write_text(
        _JOB_TEMPLATE.format(base="miniature", revision="", manifest="subjects.jsonl")
    )
    print(f"Wrote {len(subjects)} drawn subjects to {folder}/photos and the job {job_file}.")
    args.job, args.retry_failed, args.max_failures, args.address = str(job_file), True, None, None
    code = run(args)
    if code == 0:
        registry, model = folder / "runs", subjects[0][0]
        print("\nNow prompt one of them:")
        print(f'  {_program()} generate {model} "a photo of {{subject}} on the beach" -n 4 '
              f"--registry {registry}")  # fmt: skip
        print(f"  {_program()} serve --registry {registry}")
    return code


def init(args: argparse.Namespace) -> int:
    """Write a manifest and a job file for a folder of photographs."""
    photos, job_file = Path(args.photos), Path(args.output)
    manifest_file = job_file.with_suffix(".jsonl")
    for file in (job_file, manifest_file):
        if file.exists() and not args.force:
            fix = "choose another -o, or overwrite it with --force"
            raise SpecError([Problem("error", str(file), "exists already", fix)])
    base, revision = _base_to_write(args.base, args.base_revision)
    subjects, problems = manifest.scan(photos.resolve(), args.class_noun)
    if any(problem.severity == "error" for problem in problems):
        raise SpecError(problems)
    _print_problems(problems)
    manifest.write_jsonl(subjects, manifest_file)
    job_file.write_text(_JOB_TEMPLATE.format(
        base=_scalar(base), manifest=_scalar(manifest_file.name),
        revision=f"\nbase_revision: {_scalar(revision)}" if revision else "",
    ))  # fmt: skip
    nouns = {subject.class_noun for subject in subjects}
    print(
        f"Wrote {manifest_file} ({len(subjects)} subjects, {len(nouns)} class nouns) and "
        f"{job_file}.\nNext: {_program()} validate {job_file} && {_program()} run {job_file}"
    )
    return 0


def _program() -> str:
    """How this shell can call dbray: `make demo` runs it from an environment that is not active."""
    return "dbray" if shutil.which("dbray") else str(Path(sys.executable).with_name("dbray"))


def _base_to_write(base: str, revision: str | None) -> tuple[str, str | None]:
    """Name a base so that the job file finds it, wherever that lies. Raises SpecError."""
    if Path(base).expanduser().is_dir():
        return anchor(base, Path.cwd()), None
    if base != backbones.MINIATURE and not is_commit(revision or ""):
        what = "is neither 'miniature' nor a folder, and a hub id needs its commit"
        fix = "check the path, or add --base-revision with the commit's 40 hex digits"
        raise SpecError([Problem("error", f"--base {base}", what, fix)])
    return base, revision


def _scalar(text: str) -> str:
    """Write a text as YAML, with quotes where it needs them."""
    return yaml.safe_dump(text, width=2**20, allow_unicode=True).splitlines()[0]


def validate(args: argparse.Namespace) -> int:
    """List every problem of a job file, its base, its manifest and its images at once."""
    problems, num_subjects = _all_problems(Path(args.job))
    errors = [problem for problem in problems if problem.severity == "error"]
    if args.json:
        rows = [asdict(problem) for problem in problems]
        print(json.dumps({"ok": not errors, "subjects": num_subjects, "problems": rows}, indent=2))
        return SpecError.exit_code if errors else 0
    _print_problems(problems)
    print(f"{num_subjects} usable subject(s), {len(errors)} error(s), "
          f"{len(problems) - len(errors)} warning(s)")  # fmt: skip
    return SpecError.exit_code if errors else 0


def _all_problems(file: Path) -> tuple[list[Problem], int]:
    """Check a job file, and what is right in it also where the rest is wrong.

    Returns:
        Every problem, and the number of usable subjects.
    """
    try:
        job, problems = draft_job(read_text(file), file)
    except SpecError as exc:
        return list(exc.problems), 0
    base = None
    try:
        base = backbones.resolve(job.base, job.base_revision) if job.base else None
    except BaseError as exc:
        problems.append(Problem("error", f"{file}: base", str(exc), "change 'base'"))
    if problems and not job.subjects:
        return problems, 0
    found = manifest.validate(job.subjects)
    problems += found.problems
    if base is not None:
        problems += naming.check_names(job, base, [one.subject for one in found.subjects])
    return problems, len(found.subjects)


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
        f"{len(facts['prior_sets_to_make'])} sets, by {facts['prior_actors']} actors "
        "(on this machine)",
        "training": f"{steps}, learning rate {recipe['learning_rate']:g}) "
        f"in {facts['lanes']} lanes (on this machine)",
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
    return (
        f"about {prior_seconds + train_seconds:.0f} s: {prior_seconds:.0f} s for class images, "
        f"{train_seconds:.0f} s for training (on this machine, by the last job's rates)"
    )


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
    found = result.summary.counts
    print(f"\n{result.state}: {found['published']} published, {found['kept']} kept, "
          f"{found['failed']} failed, {found['unfinished']} unfinished, "
          f"in {result.summary.wall_seconds:.0f} s")  # fmt: skip
    for cause in result.summary.failures:
        print(f"  {cause.count} x {cause.kind}: {cause.example}")
    print(f"Report: {result.report}")
    return result.exit_code


def status(args: argparse.Namespace) -> int:
    """Show the jobs of a storage: counts, rates, time left, failures by cause."""
    from dbray.summary import summaries

    store = Store(args.storage)
    while True:
        jobs = dict(summaries(store))
        if args.watch and sys.stdout.isatty():
            print("\x1b[2J\x1b[H", end="")  # a terminal shows the present; a file keeps all
        if args.json:
            rows = {job_id: _as_json(found) for job_id, found in jobs.items()}
            print(json.dumps(rows, indent=None if args.watch else 2), flush=True)
        else:
            for job_id, found in jobs.items():
                _print_status(job_id, found)
            if not jobs:
                print(f"no jobs in {args.storage}")
        at_work = (found.present_state == "running" for found in jobs.values())
        if not args.watch or not any(at_work):
            return 0
        sys.stdout.flush()
        time.sleep(2.0)


def _as_json(summary: Summary) -> dict[str, Any]:
    eta = summary.eta_seconds
    now = {"state": summary.present_state, "eta_seconds": eta and round(eta)}
    return summary.model_dump(mode="json") | now


def _print_status(job_id: str, summary: Summary) -> None:
    found = summary.counts
    done = found.get("published", 0) + found.get("kept", 0)
    line = f"{job_id}: {summary.present_state}, {done}/{summary.num_subjects} published"
    if found.get("failed"):
        line += f", {found['failed']} failed"
    if summary.subjects_per_hour is not None:
        line += f", {summary.subjects_per_hour:.0f} subjects/hour"
    if summary.eta_seconds is not None:
        line += f", about {summary.eta_seconds:.0f} s left"
    print(line)
    for lane, at in summary.in_flight.items():
        print(f"  {lane}: {at.id} at step {at.step}")
    for cause in summary.failures:
        print(f"  {cause.count} x {cause.kind}: {cause.example}")
    if summary.is_gone:
        print(f"  silent since {summary.updated_at}: its process is gone; run the job again to "
              "continue it")  # fmt: skip


def report(args: argparse.Namespace) -> int:
    """Write the report of a job anew."""
    from dbray.report import build_report

    folder = anchor(args.job_folder.rstrip("/"), Path.cwd())
    storage, _, job_id = folder.rpartition("/jobs/")
    store = Store(storage or folder)
    if not storage or not store.exists(f"jobs/{job_id}/job.json"):
        raise SpecError([Problem("error", args.job_folder, "is no folder of a job",
                                 "give <storage>/jobs/<job id>")])  # fmt: skip
    print(store.location(build_report(store, job_id)))
    return 0


def schema(args: argparse.Namespace) -> int:
    """Print a JSON Schema."""
    model = Subject if args.subject else Job
    json.dump(model.model_json_schema(by_alias=True), sys.stdout, indent=2)
    print()
    return 0
