"""Evaluates the models of a registry or of a job: which, with what photographs, and the results.

Owns what is evaluated and what is left to do. An evaluation writes into its own folder, and
continues where it stopped; the models stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dbray import bases
from dbray.bases import Base
from dbray.bases.generate import Sampling
from dbray.cluster import connected
from dbray.errors import DbrayError, SpecError
from dbray.planning.checks import check_file
from dbray.records import evaluations
from dbray.records.evaluations import Evaluated
from dbray.records.models import ModelRecord, Registry
from dbray.report.evaluation import Page, write_page
from dbray.sampling.evaluation import Task, evaluate, request_of
from dbray.sampling.joining import Failures, OnProgress
from dbray.sampling.measuring import Measure
from dbray.sampling.pool import SamplingPool
from dbray.scores import embedders
from dbray.spec.sections import Previews, Scoring
from dbray.spec.subject import Subject
from dbray.spec.suites import Suite
from dbray.storage.store import Store

_JOB_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class EvaluationOptions:
    """How an evaluation is made."""

    prompts: Suite
    prompts_name: str
    scoring: dict[str, Any] = field(default_factory=dict)
    """Fields of the section `scoring` that were chosen; the job's or the base's count else."""
    previews: dict[str, Any] = field(default_factory=dict)
    """Likewise how images are sampled."""
    address: str | None = None
    """Ray cluster; None: a local one."""


@dataclass(frozen=True)
class Target:
    """The models to evaluate, and their photographs."""

    store: Store
    records: Sequence[ModelRecord]
    subjects: Sequence[Subject]
    scoring: dict[str, Any]
    """The section of the job, as far as it was set."""
    failures: Failures


@dataclass(frozen=True)
class Evaluation:
    """How an evaluation ended."""

    found: Sequence[Evaluated]
    failures: Failures
    report: str
    """Path or URI of its page."""


def find_target(place: str) -> Target:
    """Find the models of a job file, or of a registry.

    Raises:
        SpecError: the job has mistakes, or there is no model to evaluate.
    """
    if Path(place).suffix in _JOB_SUFFIXES and Path(place).is_file():
        target = _of_job(Path(place))
    else:
        target = _of_registry(place)
    if not target.records:
        reasons = "".join(f"; {name}: {reason}" for name, reason in target.failures[:3])
        raise SpecError.of(place, f"has no models to evaluate{reasons}", "run its job first")
    return target


def _of_job(file: Path) -> Target:
    ready = check_file(file, needs_weights=False).ready(skip_invalid=True)
    store = Store(ready.job.storage)
    subjects = [one.subject for one in ready.subjects]
    registry, records, failures = Registry(store), [], Failures()
    for subject in subjects:
        try:
            records.append(registry.find(subject.id))
        except DbrayError as exc:
            failures.append((subject.id, str(exc)))
    scoring = ready.job.scoring
    chosen = scoring.model_dump(include=scoring.model_fields_set)
    return Target(store, records, subjects, chosen, failures)


def _of_registry(place: str) -> Target:
    store = Store(place)
    if store.is_missing:
        raise SpecError.of(place, "is neither a folder nor a job file",
                           "give the storage of a job, or its job file")  # fmt: skip
    found: list[tuple[ModelRecord, Subject]] = []
    failures = Failures()
    jobs: dict[str, dict[str, Subject]] = {}
    for record in Registry(store).list():
        if record.job_id not in jobs:
            jobs[record.job_id] = _subjects_of(store, record.job_id)
        subject = jobs[record.job_id].get(record.id)
        if subject is None:
            failures.append((record.id, f"the photographs are not known: jobs/{record.job_id} "
                             "does not list it"))  # fmt: skip
        else:
            found.append((record, subject))
    return Target(store, [one for one, _ in found], [one for _, one in found], {}, failures)


def _subjects_of(store: Store, job_id: str) -> dict[str, Subject]:
    """Return the subjects of a job that has run there; empty if its file is gone."""
    try:
        rows = store.read_json(f"jobs/{job_id}/job.json")["subjects"]
        return {row["id"]: Subject.model_validate(row) for row in rows}
    except (DbrayError, KeyError, TypeError, ValueError):
        return {}


def run_evaluation(
    place: str,
    output: str,
    options: EvaluationOptions,
    note: Callable[[str], None] = lambda _text: None,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Evaluate the models of a job file or a registry; models with results are kept.

    Raises:
        SpecError: nothing can be evaluated, or no embedder is known.
        BaseError: a base or an embedder cannot be used.
        StoreError: storage cannot be read or written.
    """
    target, out = find_target(place), Store(output)
    failures = Failures(target.failures)
    tasks = list(_tasks(target, out, options))
    lacking = [(task, left) for task in tasks if (left := _left(task))]
    done = sum(len(task.records) for task in tasks) - sum(len(left) for _, left in lacking)
    if lacking and done:
        note(f"{done} model(s) have results already and are kept")
    if lacking:
        with connected(options.address, note):
            for task, left in lacking:
                failures += evaluate(_only(task, left), SamplingPool(), on_progress)
    found = [one for task in tasks for one in _results(task)]
    if not found:
        raise SpecError.of(place, f"no model could be evaluated; {failures[0][0]}: "
                           f"{failures[0][1]}", "mend this, and run the command again")  # fmt: skip
    found.sort(key=lambda one: one.id)
    evaluations.write_table(out, found)
    measure = tasks[0].measure
    page = Page(place, options.prompts_name, measure.identity.name,
                measure.clip and measure.clip.name, measure.scoring.images)  # fmt: skip
    write_page(out, page, found, failures)
    return Evaluation(found, failures, out.location(evaluations.REPORT))


def _tasks(target: Target, output: Store, options: EvaluationOptions) -> Iterator[Task]:
    """Yield a task for each base that models are sampled with."""
    by_base: dict[tuple[str, str | None], list[ModelRecord]] = {}
    for record in target.records:
        by_base.setdefault(record.served_by, []).append(record)
    for served_by, records in by_base.items():
        base = bases.resolve(*served_by)
        measure = _measure(base, target, options)
        yield Task(target.store, base, records, target.subjects, measure, output)


def _measure(base: Base, target: Target, options: EvaluationOptions) -> Measure:
    chosen = target.scoring | options.scoring | {"prompts": options.prompts.objects}
    scoring = base.fill(Scoring.model_validate(chosen))
    if scoring.embedder is None:
        raise SpecError.of("--embedder", "is needed: neither the job nor its base names one",
                           "give a folder, or a hub id such as facebook/dinov2-base")  # fmt: skip
    clip = scoring.clip
    return Measure(
        scoring,
        Sampling.of(base.fill(Previews.model_validate(options.previews))),
        embedders.resolve(scoring.embedder, scoring.embedder_revision),
        None if clip is None else embedders.resolve(clip, scoring.clip_revision),
        options.prompts.live,
        keeps_images=True,
    )


def _results(task: Task) -> Iterator[Evaluated]:
    for record in task.records:
        found = evaluations.read(task.output, record.name, request_of(task.measure, record))
        if found is not None:
            yield found


def _left(task: Task) -> list[ModelRecord]:
    """Return the models without results."""
    done = {(one.id, one.revision) for one in _results(task)}
    return [record for record in task.records if (record.id, record.revision) not in done]


def _only(task: Task, records: Sequence[ModelRecord]) -> Task:
    return Task(task.store, task.base, records, task.subjects, task.measure, task.output)
