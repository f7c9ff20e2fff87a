"""Evaluates the models of a registry or of a job: which, with what photographs, and the results.

Owns what is evaluated and what is left to do. An evaluation writes into its own folder, and
continues where it stopped; the models stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dbray import bases
from dbray.bases import Base
from dbray.cluster import connected
from dbray.errors import DbrayError, SpecError
from dbray.planning.checks import check_file
from dbray.records import evaluations
from dbray.records.evaluations import Evaluated
from dbray.records.models import ModelRecord, Registry
from dbray.report.evaluation import Page, write_page
from dbray.sampling.evaluation import Task, evaluate, request_of
from dbray.sampling.joining import Failures, OnProgress
from dbray.sampling.measuring import Measure, measure_of
from dbray.sampling.pool import SamplingPool
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
    """Fields of the section `scoring` that were given; others are the job's, then the base's."""
    previews: dict[str, Any] = field(default_factory=dict)
    """Fields of `previews` that were given; others are the job's, then the base's."""
    address: str | None = None
    """Ray cluster; None: a local one."""


@dataclass(frozen=True)
class Target:
    """The models to evaluate, and their photographs."""

    store: Store
    records: Sequence[ModelRecord]
    subjects: Sequence[Subject]
    failures: Failures
    scoring: dict[str, Any] = field(default_factory=dict)
    """The section of the job, as far as it was set."""
    previews: dict[str, Any] = field(default_factory=dict)
    """As `scoring`: images are sampled as the job's previews are."""


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
    registry, records, subjects, failures = Registry(store), [], [], Failures()
    for subject in (one.subject for one in ready.subjects):
        try:
            record = registry.find(subject.id)
        except DbrayError as exc:
            subjects.append(subject)
            failures.append((subject.id, str(exc)))
        else:
            records.append(record)
            subjects.append(_as_trained(subject, record))
    scoring, previews = (
        section.model_dump(include=section.model_fields_set)
        for section in (ready.job.scoring, ready.job.previews)
    )
    return Target(store, records, subjects, failures, scoring, previews)


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
            found.append((record, _as_trained(subject, record)))
    return Target(store, [one for one, _ in found], [one for _, one in found], failures)


def _as_trained(subject: Subject, record: ModelRecord) -> Subject:
    """Return the subject with the class noun of its model: the job's may be another by now."""
    return subject.model_copy(update={"class_noun": record.class_noun})


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
    tasks = list(_tasks(target, out, options, failures))
    known = {one.name: one for task in tasks for one in _results(task)}
    lacking = [left for task in tasks if (left := _without(task, known)).records]
    if lacking and known:
        note(f"{len(known)} model(s) have results already and are kept")
    if lacking:
        with connected(options.address, note):
            for task in lacking:
                failures += evaluate(task, SamplingPool(), on_progress)
    found = [*known.values(), *(one for task in lacking for one in _results(task))]
    if not found:
        reasons = "".join(f"; {name}: {reason}" for name, reason in failures[:1])
        raise SpecError.of(place, f"no model could be evaluated{reasons}",
                           "mend this, and run the command again")  # fmt: skip
    found.sort(key=lambda one: one.id)
    evaluations.write_table(out, found)
    measure = tasks[0].measure
    page = Page(place, options.prompts_name, measure.identity.name,
                measure.clip and measure.clip.name, measure.scoring.images)  # fmt: skip
    write_page(out, page, found, failures)
    return Evaluation(found, failures, out.location(evaluations.REPORT))


def _tasks(
    target: Target, output: Store, options: EvaluationOptions, failures: Failures
) -> Iterator[Task]:
    """Yield a task for each base that models are sampled with; add models that do not fit it."""
    by_base: dict[tuple[object, ...], list[ModelRecord]] = {}
    for record in target.records:
        stage = record.super_resolution
        network = stage and stage.networks
        by_base.setdefault((record.served_by, network), []).append(record)
    for records in by_base.values():
        base = bases.resolve(*records[0].served_by)
        base = bases.with_stage(base, records[0].super_resolution)
        fitting = [record for record in records if record.fits(*base.digests)]
        others = [record for record in records if not record.fits(*base.digests)]
        failures += [(record.id, record.of_another(base.digest)) for record in others]
        if fitting:
            measure = _measure(base, target, options)
            yield Task(target.store, base, fitting, target.subjects, measure, output)


def _measure(base: Base, target: Target, options: EvaluationOptions) -> Measure:
    chosen = target.scoring | options.scoring | {"prompts": options.prompts.objects}
    scoring = base.fill(Scoring.model_validate(chosen))
    previews = base.fill(Previews.model_validate(target.previews | options.previews))
    measure = measure_of(scoring, previews)
    if measure is None:
        raise SpecError.of("--embedder", "is needed: neither the job nor its base names one",
                           "give a folder, or a hub id such as facebook/dinov2-base")  # fmt: skip
    return replace(measure, live_prompts=options.prompts.live, keeps_images=True)


def _results(task: Task) -> Iterator[Evaluated]:
    for record in task.records:
        found = evaluations.read(task.output, record.name, request_of(task.measure, record))
        if found is not None:
            yield found


def _without(task: Task, known: Collection[str]) -> Task:
    """Return the task for the models without results."""
    return replace(task, records=[one for one in task.records if one.name not in known])
