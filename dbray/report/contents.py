"""What a report shows, read from storage: the job's files, the registry, the photographs.

Tolerates gaps, which the report shows and which are not errors: an interrupted job has no summary
and perhaps half a line of results, a photograph may be gone, a model removed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from dbray.errors import DbrayError, StoreError
from dbray.records import previews as layout
from dbray.records.models import ModelRecord, Registry
from dbray.records.results import (
    DAMAGED,
    Outcome,
    Summary,
    causes,
    counts,
    read_outcomes,
    read_summary,
)
from dbray.records.scores import read as read_scores
from dbray.report.thumbnails import Thumbnails
from dbray.scores.flags import Flag, flags_of
from dbray.scores.values import Scores
from dbray.spec.subject import Subject
from dbray.storage.store import Store, read_uri
from dbray.subjects.images import MAX_IMAGE_BYTES

logger = logging.getLogger(__name__)

_READERS = 8
MAX_DETAILED = 2_000
"""How many failed subjects, and how many others, are shown in detail; the rest is only listed."""
_LOSS_POINTS = 100


class _Row(BaseModel):
    """Written by dbray itself, perhaps by a newer one: unknown keys are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


_R = TypeVar("_R", bound=_Row)


class BaseRow(_Row):
    """The base that the job resolved."""

    name: str
    digest: str = ""


class SubjectRow(_Row):
    """A subject of the job."""

    id: str
    class_noun: str
    images: tuple[str, ...] = ()


class PreviewsRow(_Row):
    """The previews that the job asked for."""

    prompts: tuple[str, ...] = ()


class JobRow(_Row):
    """What the page shows of the job itself."""

    storage: str
    previews: PreviewsRow = PreviewsRow()


class JobFile(_Row):
    """job.json."""

    job: JobRow
    started_at: str | None = None
    dbray_version: str = ""
    base: BaseRow
    subjects: tuple[SubjectRow, ...] = ()


@dataclass(frozen=True)
class Preview:
    """One prompt: the subject's thumbnail, the key of the base's, and the prompts of both."""

    image: str | None
    base: str | None
    prompt: str
    base_prompt: str
    seed: str | None


@dataclass(frozen=True)
class Card:
    """All that the page shows of one subject; without details, only its result."""

    id: str
    class_noun: str
    result: Outcome | None
    record: ModelRecord | None = None
    photographs: list[str] = field(default_factory=list)
    missing_photographs: int = 0
    previews: list[Preview] = field(default_factory=list)
    note: str | None = None
    is_detailed: bool = True
    scores: Scores | None = None

    @property
    def status(self) -> str:
        """The result's status; 'waiting' for a subject that the job did not reach."""
        return self.result.status if self.result else "waiting"

    @property
    def flags(self) -> tuple[Flag, ...]:
        """The faults that the scores show."""
        return flags_of(self.scores) if self.scores else ()

    @property
    def loss(self) -> list[tuple[int, float, float, float]]:
        """The loss curve, thinned to at most 100 points, the last one included."""
        points = self.record.loss if self.record else ()
        stride = -(-len(points) // _LOSS_POINTS) or 1
        return list(points[::-stride])[::-1]

    @property
    def fidelity(self) -> tuple[tuple[int, float, float, float], ...]:
        """The fidelity curve; empty where training took all steps."""
        return self.record.fidelity if self.record else ()

    @property
    def num_steps(self) -> int:
        """Steps that were taken, those after the published checkpoint too."""
        published = self.record.steps if self.record else 0
        return max([published, *(step for step, *_ in (*self.loss, *self.fidelity))])


@dataclass(frozen=True)
class Contents:
    """All that the page shows."""

    job_id: str
    job: JobFile
    summary: Summary
    cards: Sequence[Card]
    thumbnails: Thumbnails


def read_contents(
    store: Store, job_id: str, photographs: Callable[[Subject], list[bytes]] | None
) -> Contents:
    """Read everything, and shrink the images at once: as files they may not fit in memory.

    Of a very large job, only the first failed subjects and the first others are read in detail:
    with all of them, the page would take hours to make and could not be opened.
    """
    folder = f"jobs/{job_id}"
    job = _parse(JobFile, store.read_json(f"{folder}/job.json"), f"{folder}/job.json")
    results = read_outcomes(store, job_id)
    summary = _read_summary(store, job_id, results.values())
    subjects = {subject.id: subject for subject in job.subjects}
    for result in results.values():
        subjects.setdefault(result.id, SubjectRow(id=result.id, class_noun=result.class_noun))
    detailed = _detailed(subjects, results)
    num_prompts = len(job.job.previews.prompts)
    num_images = sum(len(subjects[name].images) + num_prompts + 1 for name in detailed)
    reader = _Reader(Registry(store), Thumbnails(num_images), photographs, num_prompts > 0)

    def card(subject: SubjectRow) -> Card:
        result = results.get(subject.id)
        if subject.id in detailed:
            return reader.card(subject, result)
        return Card(subject.id, subject.class_noun, result, is_detailed=False)

    with ThreadPoolExecutor(_READERS) as threads:
        cards = list(threads.map(card, subjects.values()))
    return Contents(job_id, job, summary, cards, reader.thumbnails)


def _detailed(subjects: Iterable[str], results: Mapping[str, Outcome]) -> set[str]:
    """Choose the subjects that are shown in detail."""
    failed, others = [], []
    for name in subjects:
        result = results.get(name)
        (failed if result and result.status == "failed" else others).append(name)
    return {*failed[:MAX_DETAILED], *others[:MAX_DETAILED]}


@dataclass(frozen=True)
class _Reader:
    """Reads all that belongs to one subject."""

    registry: Registry
    thumbnails: Thumbnails
    photographs: Callable[[Subject], list[bytes]] | None
    wants_previews: bool

    def card(self, subject: SubjectRow, result: Outcome | None) -> Card:
        record, note, files, scores = None, None, {}, None
        if result is not None and result.is_published:
            try:
                record = self.registry.find(f"{result.id}@{result.revision}")
                files = layout.annex(self.registry.store, record.name).read() or {}
                scores = read_scores(self.registry.store, record.name)
            except DbrayError as exc:
                note = f"The published model cannot be read: {exc}"
        previews: list[Preview] = []
        try:
            previews = self._previews(files)
        except ValueError as exc:
            note = f"The previews cannot be read: {exc}"
        if record is not None and self.wants_previews and not previews and note is None:
            note = "It has no previews, or they are damaged. Running the job again makes them."
        shots = self._photographs(subject, files)
        return Card(
            id=subject.id,
            class_noun=subject.class_noun,
            result=result,
            record=record,
            photographs=shots,
            missing_photographs=max(0, len(subject.images) - len(shots)),
            previews=previews,
            note=note,
            scores=scores,
        )

    def _photographs(self, row: SubjectRow, files: Mapping[str, bytes]) -> list[str]:
        """The caller's, else the small copies beside the previews, else the files."""
        try:
            subject = Subject.model_validate(row.model_dump())
            copies = layout.photographs_of(files)
            shots = self.photographs(subject) if self.photographs else copies
            shots = shots or _read_photographs(subject)
        except (DbrayError, ValidationError) as exc:
            logger.warning("report photographs unreadable subject=%s: %s", row.id, exc)
            return []
        made = (self.thumbnails.make(data) for data in shots)
        return [thumbnail for thumbnail in made if thumbnail is not None]

    def _previews(self, files: Mapping[str, bytes]) -> list[Preview]:
        make, share = self.thumbnails.make, self.thumbnails.share
        return [
            Preview(
                image=make(one.image) if one.image else None,
                base=share(one.base_image) if one.base_image else None,
                prompt=one.prompt,
                base_prompt=one.base_prompt,
                seed=one.seed,
            )
            for one in layout.pictures_of(files)
        ]


def _read_photographs(subject: Subject) -> list[bytes]:
    files = []
    for path in subject.images:
        try:
            files.append(read_uri(path, MAX_IMAGE_BYTES))
        except DbrayError as exc:
            logger.warning("report photograph unreadable subject=%s: %s", subject.id, exc)
    return files


def _read_summary(store: Store, job_id: str, results: Iterable[Outcome]) -> Summary:
    """Read the summary; if it cannot be read, count the results."""
    found = read_summary(store, job_id)
    if found is None or found.state == DAMAGED:
        return Summary(counts=counts(results), failures=causes(results))
    return found.model_copy(update={"state": found.present_state})


def _parse(model: type[_R], data: Any, path: str) -> _R:
    try:
        return model.model_validate(data)
    except ValidationError as exc:
        raise StoreError(f"{path} is not what this dbray writes: {exc}") from exc
