"""The Job, and the file that users write it in.

Owns the top level of a job file, what its relative paths are relative to, and how much of a file
with mistakes is read. Its sections are in dbray.spec.recipe, sections and resources.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Discriminator, Field, Tag, ValidationError, field_validator

from dbray.errors import Problem, SpecError
from dbray.spec.base import Spec
from dbray.spec.canon import SUBJECT_ID_PATTERN, SubjectId, is_commit, slug
from dbray.spec.paths import Address, anchor, anchor_base
from dbray.spec.problems import ADDRESS_BRANCH, LIST_BRANCH, problems_of
from dbray.spec.recipe import Recipe
from dbray.spec.resources import Resources
from dbray.spec.sections import Identifiers, Previews, Prior, Scoring
from dbray.spec.subject import Subject, make_subject
from dbray.spec.super_resolution import Enlargement, SuperResolution
from dbray.spec.text_files import Item, Lines, items_of, locate, parse_yaml, read_text

SCHEMA_VERSION = "dbray/v1"
FIRST_DEFAULT_ID = "job"
"""The id of a job without file and id, and the default of older versions for every job.yaml."""
# The schemes that pyarrow.fs opens.
_STORAGE_SCHEMES = ("file", "s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss")


def _branch_of(subjects: Any) -> str:
    is_address = isinstance(subjects, str | os.PathLike)
    return ADDRESS_BRANCH if is_address else LIST_BRANCH


# With a discriminator, a mistake in a subject is not also reported as "should be a string".
Subjects = Annotated[
    Annotated[Address, Tag(ADDRESS_BRANCH)] | Annotated[tuple[Subject, ...], Tag(LIST_BRANCH)],
    Discriminator(_branch_of),
]


class Job(Spec):
    """A user's request: subjects + base + recipe + prior + previews + storage."""

    schema_version: Literal["dbray/v1"] = Field(default=SCHEMA_VERSION, alias="schema")
    id: SubjectId = Field(
        default="job",
        description="Name of the job; default: the job file's name without its suffix, and for "
        "job.yaml that of its folder.",
    )
    base: Address = Field(description="miniature, a diffusers folder, or a hub id.")
    base_revision: str | None = Field(
        default=None,
        description="Commit of a hub id, 40 hex digits; required for hub ids, so that results "
        "repeat.",
    )
    serve_base: Address | None = Field(
        default=None,
        description="A base that previews and serving use instead, such as a distilled one of the "
        "same family: adapters trained on `base` are put on it. Named as `base` is.",
    )
    serve_base_revision: str | None = Field(
        default=None, description="Commit of a hub id of `serve_base`, 40 hex digits."
    )
    subjects: Subjects = Field(
        description="Manifest (.jsonl, .yaml, .csv), a folder with one folder per subject, "
        "or the subjects themselves."
    )
    storage: Address = Field(
        default="runs", description="Folder or URI (s3://, gs://, ...) of all results."
    )
    tenant: str | None = Field(
        default=None,
        pattern=SUBJECT_ID_PATTERN,
        description="Owner of the models, where several tenants share one registry; absent: "
        "everybody may see them.",
    )
    recipe: Recipe = Recipe()
    super_resolution: SuperResolution | None = Field(
        default=None,
        description="The second stage of a cascade: the network that enlarges the base's images.",
    )
    prior: Prior = Prior()
    previews: Previews = Previews()
    scoring: Scoring = Scoring()
    identifiers: Identifiers = Identifiers()
    resources: Resources = Resources()

    model_config = ConfigDict(populate_by_name=True)

    @field_validator("base_revision", "serve_base_revision")
    @classmethod
    def _pinned(cls, revision: str | None) -> str | None:
        if revision is not None and not is_commit(revision):
            raise ValueError(
                "a revision is the 40 hex digits of a commit: branches and tags move. "
                "huggingface.co lists commits under 'Files and versions', 'History'"
            )
        return revision

    @field_validator("storage")
    @classmethod
    def _known_storage(cls, storage: str) -> str:
        scheme, separator, _ = storage.partition("://")
        if separator and scheme not in _STORAGE_SCHEMES:
            raise ValueError(
                f"{scheme}:// is not supported as storage; give a folder, s3://, gs://, ..."
            )
        return storage

    @classmethod
    def load(cls, path: str | Path) -> Job:
        """Read a job file (YAML). Paths in it are relative to the file.

        Raises:
            SpecError: with every mistake in the file, its line and a fix.
        """
        draft = draft_job(Path(path))
        subjects, problems = draft.subjects or (), list(draft.problems)
        if not isinstance(subjects, str):
            subjects, mistakes = _read_inline(subjects, Path(path).resolve().parent)
            problems += mistakes
        if problems:
            raise SpecError(problems)
        return draft.job.model_copy(update={"subjects": subjects})


@dataclass(frozen=True, slots=True)
class Draft:
    """The readable part of a job file, so that the rest can be checked despite its mistakes.

    `job` lacks its subjects and all invalid values (its base is "" if that is invalid).
    `subjects` is an address, or the file's list, unchecked; None if it is neither.
    """

    job: Job
    subjects: str | list[Item] | None
    problems: list[Problem]
    file: str
    lines: Lines
    has_own_id: bool = True

    def where(self, key: str) -> str:
        """Return the file, and the line of a key."""
        return locate(self.file, self.lines, (key,))


def draft_job(file: Path) -> Draft:
    """Read a job file. Paths in it become absolute, except those of the subjects it lists.

    Raises:
        SpecError: it cannot be read, or is not YAML or not a mapping.
    """
    text = read_text(file, if_missing="check the path, or make one with 'dbray init'")
    data, lines = parse_yaml(text, file)
    if not isinstance(data, dict):
        raise SpecError.of(
            str(file),
            "is not a mapping of keys to values",
            "write 'base: ...', 'subjects: ...' and so on",
        )
    data = {str(key): value for key, value in data.items()}  # YAML may parse one as a date
    name, problems = str(file), []
    has_own_id = "id" in data
    if not has_own_id:
        data["id"] = default_id(file) or FIRST_DEFAULT_ID
        if not default_id(file):
            problems.append(Problem("error", name, "has a name that gives the job no id",
                                    "add 'id: ...', or rename the file"))  # fmt: skip
    listed = data.get("subjects")
    if isinstance(listed, list):
        data["subjects"] = ()
    job, mistakes = _without_mistakes(data, name, lines)
    job = anchored(job, file.resolve().parent)
    subjects = job.subjects if isinstance(job.subjects, str) else None
    if isinstance(listed, list):
        subjects = items_of(listed, name, lines, ("subjects",))
    return Draft(job, subjects, [*problems, *mistakes], name, lines, has_own_id)


def default_id(file: Path) -> str:
    """Return the default id of a job: its file's name or, for job.yaml, its folder's."""
    if file.stem != FIRST_DEFAULT_ID:
        return slug(file.stem)
    folder = file.resolve().parent.name
    # Ray unpacks a submitted job into a folder that has a new name each time.
    return FIRST_DEFAULT_ID if folder.startswith("_ray_pkg_") else slug(folder) or FIRST_DEFAULT_ID


def _without_mistakes(data: dict[Any, Any], file: str, lines: Lines) -> tuple[Job, list[Problem]]:
    """Make a job from the valid values; return it and the problems."""
    try:
        return Job.model_validate(data), []
    except ValidationError as exc:
        wrong = {error["loc"][0] for error in exc.errors()}
        right = {key: value for key, value in data.items() if key not in wrong}
        job = Job.model_validate({"base": "left out", "subjects": ()} | right)
        base = job.base if "base" in right else ""
        return job.model_copy(update={"base": base}), problems_of(exc, file, lines, Job)


def anchored(job: Job, folder: Path) -> Job:
    """Make the paths of a job absolute, except those of the subjects that it lists itself."""
    embedders = {
        name: anchor_base(address, folder)
        for name, address in (("embedder", job.scoring.embedder), ("clip", job.scoring.clip))
        if address is not None
    }
    paths = {
        "storage": anchor(job.storage, folder),
        "base": anchor_base(job.base, folder),
        "scoring": job.scoring.model_copy(update=embedders),
    }
    if job.serve_base is not None:
        paths["serve_base"] = anchor_base(job.serve_base, folder)
    if job.super_resolution is not None:
        paths["super_resolution"] = _anchor_stage(job.super_resolution, folder)
    if isinstance(job.subjects, str):
        paths["subjects"] = anchor(job.subjects, folder)
    return job.model_copy(update=paths)


_Stage = TypeVar("_Stage", bound=Enlargement)


def _anchor_stage(stage: _Stage, folder: Path) -> _Stage:
    """Make the paths of a network, and of those after it, absolute."""
    base = anchor_base(stage.base, folder) if stage.base is not None else None
    then = _anchor_stage(stage.then, folder) if stage.then is not None else None
    return stage.model_copy(update={"base": base, "then": then})


def _read_inline(items: Iterable[Item], folder: Path) -> tuple[tuple[Subject, ...], list[Problem]]:
    """Make the subjects that a job file lists; return them and the problems."""
    subjects, problems = [], []
    for item in items:
        try:
            subject = make_subject(item)
        except SpecError as exc:
            problems += exc.problems
        else:
            images = tuple(anchor(image, folder) for image in subject.images)
            subjects.append(subject.model_copy(update={"images": images}))
    return tuple(subjects), problems
