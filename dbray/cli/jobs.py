"""Commands that check and run a job: validate, plan, run, schema."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dbray.cli.output import print_problems, print_table, shell_command
from dbray.errors import Problem, SpecError
from dbray.planning import people
from dbray.planning.checks import check_file
from dbray.spec.job import Job
from dbray.spec.subject import Subject
from dbray.storage.store import Store

if TYPE_CHECKING:
    from dbray.run.job import JobResult
    from dbray.run.options import RunOptions

_MAX_NAMED = 8


def validate(args: argparse.Namespace) -> int:
    """List every problem of a job file, its base, its manifest and its images."""
    checked = check_file(Path(args.job))
    checked.problems += people.look(checked)
    problems, errors, num_subjects = checked.problems, checked.errors, len(checked.subjects)
    nouns = {name: asdict(one) for name, one in checked.chosen_nouns.items()}
    if args.json:
        rows = [asdict(problem) for problem in problems]
        facts = {"ok": not errors, "subjects": num_subjects, "chosen_nouns": nouns,
                 "problems": rows}  # fmt: skip
        print(json.dumps(facts, indent=2))
        return SpecError.exit_code if errors else 0
    print_problems(problems)
    for name, one in nouns.items():
        print(f"subject {name}: class noun {one['noun']} ({one['share']:.0%})")
    print(f"{num_subjects} usable subject(s), {len(errors)} error(s), "
          f"{len(problems) - len(errors)} warning(s)")  # fmt: skip
    return SpecError.exit_code if errors else 0


def plan(args: argparse.Namespace) -> int:
    """Show what would run, and what it costs."""
    from dbray.hardware import Hardware
    from dbray.planning.changes import changes, in_another_form, renamed
    from dbray.planning.cost import estimate, latest_rates
    from dbray.planning.ids import settle_id
    from dbray.planning.memory import advice, propose
    from dbray.planning.plan import make_plan
    from dbray.planning.room import room_for, shortages
    from dbray.records.models import Registry

    ready = check_file(Path(args.job), needs_weights=False).ready()
    store = Store(ready.job.storage)
    ready = settle_id(ready, store)
    made = make_plan(ready, store)
    machine = Hardware.local()
    cost = estimate(made, machine, latest_rates(store, made.base.digest, made.job))
    room = room_for(store, machine)
    needs = sum(cost.storage_bytes.values()), sum(cost.memory_bytes.values())
    proposed = propose(made, machine)
    fix = advice(proposed, made.job.resources)
    registry = Registry(store)
    warnings = [*made.warnings, *cost.warnings, *shortages(*needs, room, fix),
                *_renamed(renamed(made, registry)), *in_another_form(made, registry)]  # fmt: skip
    facts = {
        "job": made.job.id,
        "base": made.base.name,
        "base_digest": made.base.digest,
        "subjects_to_train": [one.subject.id for one in made.to_train],
        "subjects_kept": [one.subject.id for one in made.kept],
        "subjects_failed": list(made.failed),
        "identifiers": {one.subject.id: one.identifier for one in made.subjects},
        "chosen_nouns": {name: asdict(one) for name, one in ready.chosen_nouns.items()},
        "class_nouns": list(made.class_nouns),
        "prior_sets_to_make": [prior.class_noun for prior in made.missing_priors],
        "class_images_to_make": made.num_prior_images,
        "recipe": made.job.recipe.model_dump(),
        "prior": made.job.prior.model_dump(),
        "super_resolution": made.job.super_resolution and made.job.super_resolution.model_dump(),
        "sources": ready.sources,
        **asdict(cost),
        "pack": made.job.resources.pack,
        "disk_free_bytes": room.disk_bytes,
        "device_memory_bytes": room.memory_bytes,
        "proposed_resources": proposed and proposed.model_dump(),
        "changes": changes(made, registry),
        "warnings": [asdict(warning) for warning in warnings],
    }
    if args.json:
        print(json.dumps(facts, indent=2))
        return 0
    print_problems(warnings)
    _print_plan(facts)
    return 0


def _print_plan(facts: dict[str, Any]) -> None:
    recipe, nouns = facts["recipe"], facts["class_nouns"]
    at_most = "at most " if recipe["stop"] else ""
    rows = {
        "base": f"{facts['base']} ({facts['base_digest'][:12]})",
        "to train": f"{len(facts['subjects_to_train'])} subjects of {len(nouns)} class nouns"
        f"{_first_names(facts['subjects_to_train'], facts['identifiers'])}",
        "again": _changed(facts["changes"]),
        "kept": f"{len(facts['subjects_kept'])} subjects, already published",
        "failed": _would_fail_again(len(facts["subjects_failed"])),
        "class images": _class_images(facts),
        "training": f"{at_most}{facts['train_steps']} steps ({_training(recipe)}"
        f"{_second_stage(facts['super_resolution'])}) "
        f"in {facts['lanes']} lane(s){_slots(facts['pack'])} (on this machine)",
        "recipe": _with_sources(recipe, facts["sources"]["recipe"]),
        "prior": _with_sources(facts["prior"], facts["sources"]["prior"]),
        "memory": f"{_sizes(facts['memory_bytes'])} per worker"
        f"{_of(facts['device_memory_bytes'])}",
        "disk": f"{_sizes(facts['storage_bytes'])} at most{_of(facts['disk_free_bytes'])}",
        "weights": facts["model_bytes"] and f"{facts['model_bytes']:,} bytes per subject",
        "time": _duration(facts["prior_seconds"], facts["train_seconds"]),
    }  # fmt: skip
    print_table((name, value) for name, value in rows.items() if value)


def _training(recipe: dict[str, Any]) -> str:
    """Return how a subject is trained in one network."""
    method = recipe["method"] if isinstance(recipe["method"], str) else recipe["method"]["kind"]
    return (f"{recipe['steps']} each, method {method}, "
            f"learning rate {recipe['learning_rate']:g}")  # fmt: skip


def _second_stage(stage: dict[str, Any] | None) -> str:
    if stage is None:
        return ""
    how = _training(stage["recipe"]) if stage["train"] else "not trained"
    further = f", then {stage['then']['base']}" if stage["then"] else ""
    return f"; super-resolution at noise level {stage['noise_level']}: {how}{further}"


def _slots(pack: int | str) -> str:
    if pack == 1:
        return ""
    return " of as many slots as gain time" if pack == "auto" else f" of {pack} slots"


def _class_images(facts: dict[str, Any]) -> str:
    from dbray.planning.room import mebibytes

    if facts["lesson_bytes"]:
        size = mebibytes(facts["lesson_bytes"])
        return f"none: the base is the teacher; its predictions take {size} of RAM per worker"
    return (f"{facts['class_images_to_make']} to make, in {len(facts['prior_sets_to_make'])} sets, "
            f"by {facts['prior_actors']} actors (on this machine)")  # fmt: skip


def _with_sources(values: dict[str, Any], sources: Mapping[str, str]) -> str:
    """Return the values of a section, one line per source."""
    lines: dict[str, list[str]] = {}
    for name, source in sources.items():
        lines.setdefault(source, []).append(f"{name} {_shown(values[name])}")
    return "\n".join(f"{source}: {', '.join(found)}" for source, found in lines.items())


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        chosen = [f"{name} {_shown(one)}" for name, one in value.items() if one is not None]
        return f"({', '.join(chosen)})" if chosen else "none"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _changed(changes: dict[str, tuple[str, ...]]) -> str:
    """Explain why published subjects would train again, one line per reason."""
    subjects: dict[tuple[str, ...], list[str]] = {}
    for subject_id, differences in changes.items():
        subjects.setdefault(differences, []).append(subject_id)
    lines = []
    for differences, ids in list(subjects.items())[:_MAX_NAMED]:
        named = ", ".join([*ids[:_MAX_NAMED], *(["others"] if len(ids) > _MAX_NAMED else [])])
        lines.append(f"{named} would train again because of {', '.join(differences)}")
    return "\n".join(lines)


def _renamed(renamed: dict[str, str]) -> list[Problem]:
    fix = "to keep the published model, give the subject its former id"
    return [
        Problem("warning", f"subject {new}",
                f"has the photographs of the published model {old}; under its new id it is "
                "trained again", fix, new)
        for new, old in renamed.items()
    ]  # fmt: skip


def _of(available: int | None) -> str:
    from dbray.planning.room import mebibytes

    return "" if available is None else f"; this machine has {mebibytes(available)}"


def _would_fail_again(num_failed: int) -> str:
    """Count the subjects that are skipped because they would fail again."""
    hint = "which would fail again; 'dbray run --retry-failed' retries them"
    return f"{num_failed} subjects, {hint}" if num_failed else ""


def _sizes(bytes_by_kind: dict[str, int]) -> str:
    from dbray.planning.room import mebibytes

    sizes = [f"{mebibytes(size)} {kind}" for kind, size in bytes_by_kind.items() if size]
    return " + ".join(sizes) or "nothing"


def _first_names(ids: list[str], identifiers: dict[str, str]) -> str:
    """Return the first subjects, with their identifiers."""
    if not ids:
        return ""
    shown = [f"{one} = {identifiers[one]!r}" for one in ids[:_MAX_NAMED]]
    more = [f"and {len(ids) - _MAX_NAMED} more"] if len(ids) > _MAX_NAMED else []
    return ": " + ", ".join([*shown, *more])


def _duration(prior_seconds: float | None, train_seconds: float | None) -> str:
    if prior_seconds is None or train_seconds is None:
        return "unknown: no job like this one has finished in this storage yet"
    return (
        f"about {prior_seconds + train_seconds:.0f} s: {prior_seconds:.0f} s for class images, "
        f"{train_seconds:.0f} s for training (on this machine, at the last job's rates)"
    )


def run(args: argparse.Namespace) -> int:
    """Run a job, or continue it."""
    from dbray.run.options import RunOptions

    flags = [] if args.max_failures is None else ["--max-failures", str(args.max_failures)]
    flags += ["--address", args.address] if args.address else []
    flags += ["--skip-invalid"] if args.skip_invalid else []
    options = RunOptions(
        args.retry_failed,
        args.max_failures,
        args.address or os.environ.get("RAY_ADDRESS"),
        shell_command("run", args.job, *flags),
        args.skip_invalid,
    )
    return run_file(Path(args.job), options)


def run_file(job_file: Path, options: RunOptions) -> int:
    """Run a job file; returns the exit code."""
    from dbray.cli.noise import quiet_stderr
    from dbray.cli.watch import watch
    from dbray.run.job import run_job

    end_as_after_ctrl_c()
    ready = check_file(job_file).ready(options.skip_invalid)
    with quiet_stderr(), watch() as progress:
        result = run_job(ready, options, progress)
    found = result.summary.counts
    print(f"\n{result.state}: {found['published']} published, {found['kept']} kept, "
          f"{found['failed']} failed, {found['unfinished']} unfinished, "
          f"in {result.summary.wall_seconds:.0f} s")  # fmt: skip
    for cause in result.summary.failures:
        print(f"  {cause.count} x {cause.kind}: {cause.example}")
    _print_flagged(result)
    print(f"Report: {result.report}")
    return result.exit_code


def _print_flagged(result: JobResult) -> None:
    """Print the faults that scores show, and what to change."""
    if result.flagged:
        print(f"{len(result.flagged)} model(s) with faults, by their scores:")
    for model, flags in result.flagged[:_MAX_NAMED]:
        for flag in flags:
            print(f"  {model} {flag.text}")
    if len(result.flagged) > _MAX_NAMED:
        print("  all are in the report and in 'dbray models list'")


def end_as_after_ctrl_c() -> None:
    """Also write the journal if a signal other than Ctrl-C ends the run."""
    # `ray job stop` and schedulers send it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # A closing terminal sends SIGHUP, which `nohup` ignores.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.default_int_handler)


def schema(args: argparse.Namespace) -> int:
    """Print a JSON Schema."""
    model = Subject if args.subject else Job
    json.dump(model.model_json_schema(by_alias=True), sys.stdout, indent=2)
    print()
    return 0
