"""Commands about jobs: demo, init, validate, plan, run, status, report, schema."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dbray.errors import Problem, SpecError, StoreError, without_secrets
from dbray.planning.checks import check_file
from dbray.records.results import DAMAGED
from dbray.spec.canon import is_commit
from dbray.spec.job import Job
from dbray.spec.paths import MINIATURE, anchor, anchor_base, is_folder
from dbray.spec.subject import Subject
from dbray.storage.store import Store
from dbray.subjects import validation

if TYPE_CHECKING:
    from dbray.records.results import PhaseProgress, Summary

_MAX_NAMED = 8
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
    photos, job_file = folder / "photos", folder / "demo.yaml"
    with _writing(folder):
        subjects = world.write_photographs(photos, num_subjects=6, num_classes=3, seed=0)
        validation.write_jsonl(
            [
                Subject(id=subject_id, class_noun=noun, images=(str(photos / subject_id),))
                for subject_id, noun in subjects
            ],
            folder / "subjects.jsonl",
        )
        job_file.write_text(
            _JOB_TEMPLATE.format(base="miniature", revision="", manifest="subjects.jsonl"),
            encoding="utf-8",
        )
    print(f"Wrote {len(subjects)} drawn subjects to {folder}/photos and the job {job_file}.")
    code = _run(job_file, retry_failed=True)
    if code == 0:
        registry, model = str(folder / "runs"), subjects[0][0]
        prompt = "a photo of a {subject} on the beach"
        print("\nNow prompt one of them:")
        print(" ", _command("generate", model, prompt, "-n", "4", "--registry", registry))
        print(" ", _command("serve", "--registry", registry))
    return code


def init(args: argparse.Namespace) -> int:
    """Write a manifest and a job file for a folder of photographs."""
    photos, job_file = Path(args.photos), Path(args.output)
    manifest_file = _manifest_beside(job_file, args.force)
    if not is_folder(photos):
        fix = "give the folder that holds one sub-folder of photographs per subject"
        raise SpecError.of(args.photos, "is no folder", fix)
    base, revision = _base_to_write(args.base, args.base_revision)
    subjects, problems = validation.scan(photos.resolve(), args.class_noun)
    if any(problem.severity == "error" for problem in problems):
        raise SpecError(problems)
    _print_problems(problems)
    with _writing(job_file):
        validation.write_jsonl(subjects, manifest_file)
        job_file.write_text(_JOB_TEMPLATE.format(
            base=_scalar(base), manifest=_scalar(manifest_file.name),
            revision=f"\nbase_revision: {_scalar(revision)}" if revision else "",
        ), encoding="utf-8")  # fmt: skip
    nouns = {subject.class_noun for subject in subjects}
    print(
        f"Wrote {manifest_file} ({len(subjects)} subjects, {len(nouns)} class nouns) and "
        f"{job_file}.\nNext: {_command('validate', job_file)} && {_command('run', job_file)}"
    )
    return 0


def _manifest_beside(job_file: Path, may_overwrite: bool) -> Path:
    """Name the manifest of a job file to write. Raises SpecError if it or the job has no place."""
    if is_folder(job_file):
        fix = "name a file in it, such as job.yaml"
        raise SpecError.of(str(job_file), "is a folder", fix)
    manifest_file = job_file.with_suffix(".jsonl")
    if manifest_file == job_file:
        fix = "name the job .yaml: the manifest beside it is called as it is, with .jsonl"
        raise SpecError.of(str(job_file), "is the manifest's name", fix)
    for file in (job_file, manifest_file):
        if file.exists() and not may_overwrite:
            fix = "choose another -o, or overwrite it with --force"
            raise SpecError.of(str(file), "exists already", fix)
    return manifest_file


@contextmanager
def _writing(place: Path) -> Iterator[None]:
    """Where the disk takes no file, another -o is wanted."""
    try:
        yield
    except (OSError, StoreError) as exc:
        what = f"cannot be written: {getattr(exc, 'strerror', None) or exc}"
        where = str(getattr(exc, "filename", None) or place)
        raise SpecError.of(where, what, "choose another -o") from exc


def _command(*words: str | Path) -> str:
    """A command as this shell takes it: `make demo` runs dbray from an inactive environment."""
    program = "dbray" if shutil.which("dbray") else Path(sys.executable).with_name("dbray")
    return shlex.join(map(str, (program, *words)))


def _base_to_write(base: str, revision: str | None) -> tuple[str, str | None]:
    """Name a base so that the job file finds it, wherever that lies. Raises SpecError."""
    base = anchor_base(base, Path.cwd())
    if base == MINIATURE or is_folder(base):
        return base, None
    if not is_commit(revision or ""):
        what = "is neither 'miniature' nor a folder, and a hub id needs its commit"
        fix = "check the path, or add --base-revision with the commit's 40 hex digits"
        raise SpecError.of(f"--base {base}", what, fix)
    return base, revision


def _scalar(text: str) -> str:
    """Write a text as YAML, with quotes where it needs them."""
    return yaml.safe_dump(text, width=2**20, allow_unicode=True).splitlines()[0]


def validate(args: argparse.Namespace) -> int:
    """List every problem of a job file, its base, its manifest and its images at once."""
    checked = check_file(Path(args.job))
    problems, errors, num_subjects = checked.problems, checked.errors, len(checked.subjects)
    if args.json:
        rows = [asdict(problem) for problem in problems]
        print(json.dumps({"ok": not errors, "subjects": num_subjects, "problems": rows}, indent=2))
        return SpecError.exit_code if errors else 0
    _print_problems(problems)
    print(f"{num_subjects} usable subject(s), {len(errors)} error(s), "
          f"{len(problems) - len(errors)} warning(s)")  # fmt: skip
    return SpecError.exit_code if errors else 0


def _print_problems(problems: Iterable[Problem]) -> None:
    for problem in problems:
        print(problem)


def plan(args: argparse.Namespace) -> int:
    """Say what would run."""
    from dbray.hardware import Hardware
    from dbray.planning.plan import estimate, latest_rates, make_plan

    ready = check_file(Path(args.job)).ready()
    store = Store(ready.job.storage)
    made = make_plan(ready, store)
    cost = estimate(made, Hardware.local(), latest_rates(store, made.base.digest, made.job))
    warnings = [*made.warnings, *cost.warnings]
    facts = {
        "job": made.job.id,
        "base": made.base.name,
        "base_digest": made.base.digest,
        "subjects_to_train": [one.subject.id for one in made.to_train],
        "subjects_kept": [one.subject.id for one in made.kept],
        "subjects_failed": list(made.failed),
        "identifiers": {one.subject.id: one.identifier for one in made.subjects},
        "class_nouns": list(made.class_nouns),
        "prior_sets_to_make": [prior.class_noun for prior in made.missing_priors],
        "class_images_to_make": made.num_prior_images,
        "recipe": made.job.recipe.model_dump(),
        "prior": made.job.prior.model_dump(),
        **asdict(cost),
        "warnings": [asdict(warning) for warning in warnings],
    }
    if args.json:
        print(json.dumps(facts, indent=2))
        return 0
    _print_problems(warnings)
    _print_plan(facts)
    return 0


def _print_plan(facts: dict[str, Any]) -> None:
    recipe, nouns = facts["recipe"], facts["class_nouns"]
    steps = f"{facts['train_steps']} steps ({recipe['steps']} each, method {recipe['method']}"
    rows = {
        "base": f"{facts['base']} ({facts['base_digest'][:12]})",
        "to train": f"{len(facts['subjects_to_train'])} subjects of {len(nouns)} class nouns"
        f"{_first_names(facts['subjects_to_train'], facts['identifiers'])}",
        "kept": f"{len(facts['subjects_kept'])} subjects, published already",
        "failed": _never_again(len(facts["subjects_failed"])),
        "class images": f"{facts['class_images_to_make']} to make, in "
        f"{len(facts['prior_sets_to_make'])} sets, by {facts['prior_actors']} actors "
        "(on this machine)",
        "training": f"{steps}, learning rate {recipe['learning_rate']:g}) "
        f"in {facts['lanes']} lanes (on this machine)",
        "memory": f"{_sizes(facts['memory_bytes'])} per worker",
        "disk": f"{_sizes(facts['storage_bytes'])} at most",
        "time": _duration(facts["prior_seconds"], facts["train_seconds"]),
    }  # fmt: skip
    for name, value in rows.items():
        if value:
            print(f"{name:<13} {value}")


def _never_again(num_failed: int) -> str:
    """Subjects that are left out, for they would only fail again."""
    hint = "and they would again: 'dbray run --retry-failed' tries them"
    return f"{num_failed} subjects, {hint}" if num_failed else ""


def _sizes(bytes_by_kind: dict[str, int]) -> str:
    sizes = [f"{size / 2**20:.3g} MiB {kind}" for kind, size in bytes_by_kind.items() if size]
    return " + ".join(sizes) or "nothing"


def _first_names(ids: list[str], identifiers: dict[str, str]) -> str:
    """The first subjects, and who they will be to the model."""
    if not ids:
        return ""
    shown = [f"{one} = {identifiers[one]!r}" for one in ids[:_MAX_NAMED]]
    more = [f"and {len(ids) - _MAX_NAMED} more"] if len(ids) > _MAX_NAMED else []
    return ": " + ", ".join([*shown, *more])


def _duration(prior_seconds: float | None, train_seconds: float | None) -> str:
    if prior_seconds is None or train_seconds is None:
        return "unknown: no job of this kind has finished in this storage yet"
    return (
        f"about {prior_seconds + train_seconds:.0f} s: {prior_seconds:.0f} s for class images, "
        f"{train_seconds:.0f} s for training (on this machine, by the last job's rates)"
    )


def run(args: argparse.Namespace) -> int:
    """Run a job, or continue it."""
    return _run(Path(args.job), args.retry_failed, args.max_failures, args.address)


def _run(
    job_file: Path,
    retry_failed: bool = False,
    max_failures: int | None = None,
    address: str | None = None,
) -> int:
    from dbray.cli.watch import watch
    from dbray.run.job import RunOptions, run_job

    limit = [] if max_failures is None else ["--max-failures", str(max_failures)]
    cluster = ["--address", address] if address else []
    command = _command("run", job_file, *limit, *cluster)
    address = address or os.environ.get("RAY_ADDRESS")
    options = RunOptions(retry_failed, max_failures, address, command=command)
    # `ray job stop` and schedulers ask with SIGTERM: end as Ctrl-C does, with the journal written.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    ready = check_file(job_file).ready()
    with watch() as progress:
        result = run_job(ready, options, progress)
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
    from dbray.records.results import summaries

    store = Store(args.storage)
    if store.is_missing:
        fix = "give the storage of a job, such as 'runs' beside its job file"
        raise SpecError.of(args.storage, "is no folder", fix)
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
                print(f"no jobs in {without_secrets(args.storage)}")
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
    if summary.present_state == DAMAGED:
        print(f"{job_id}: {summary.error}")
        return
    found = summary.counts
    done = found.get("published", 0) + found.get("kept", 0)
    line = f"{job_id}: {summary.present_state}, {done}/{summary.num_subjects} published"
    if found.get("failed"):
        line += f", {found['failed']} failed"
    if summary.subjects_per_hour is not None:
        line += f", {summary.subjects_per_hour:.0f} subjects/hour"
    print(line)
    if summary.phase is not None and summary.present_state == "running":
        print(f"  {_how_far(summary.phase)}")
    if summary.error:
        print(f"  {summary.error}")
    for lane, at in summary.in_flight.items():
        print(f"  {lane}: {at.id} at step {at.step}")
    for cause in summary.failures:
        print(f"  {cause.count} x {cause.kind}: {cause.example}")
    if summary.is_gone:
        print(f"  silent since {summary.updated_at}: its process is gone; run the job again to "
              "continue it")  # fmt: skip


def _how_far(phase: PhaseProgress) -> str:
    left = phase.seconds_left
    text = f"{phase.name}: {phase.done}/{phase.total}"
    return text if left is None else f"{text}, about {left:.0f} s left"


def report(args: argparse.Namespace) -> int:
    """Write the report of a job anew."""
    from dbray.report import build_report

    given = args.job_folder
    place, mark, options = given.partition("?") if "://" in given else (given, "", "")
    storage, _, job_id = anchor(place.rstrip("/"), Path.cwd()).rpartition("/jobs/")
    store = Store((storage or place) + mark + options)
    if not storage or not store.exists(f"jobs/{job_id}/job.json"):
        raise SpecError.of(args.job_folder, "is no folder of a job", "give <storage>/jobs/<job id>")
    print(store.location(build_report(store, job_id)))
    return 0


def schema(args: argparse.Namespace) -> int:
    """Print a JSON Schema."""
    model = Subject if args.subject else Job
    json.dump(model.model_json_schema(by_alias=True), sys.stdout, indent=2)
    print()
    return 0
