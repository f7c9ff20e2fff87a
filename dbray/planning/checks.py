"""Everything that is wrong with a job, at once: file, base, subjects, images, identifiers.

Only a job without errors runs. Owns the order of the checks; those who read a part know what can be
wrong with it. Needs neither torch nor Ray, and reads no registry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from dbray import bases
from dbray.bases import Base, defaults
from dbray.bases.defaults import OF_JOB
from dbray.errors import BaseError, Problem, SpecError, StoreError
from dbray.planning import auto_nouns, names
from dbray.planning.cascade import check_second_stage, find_second_stage, largest_resolution
from dbray.planning.checked import Checked, Sources
from dbray.planning.long_prompts import check_job_prompts
from dbray.planning.packing import obstacle
from dbray.planning.serve_bases import check_distilled, find_serve_base
from dbray.planning.stop import check_stop
from dbray.planning.storage_place import check_storage
from dbray.scores import embedders
from dbray.spec.job import Job, anchored, draft_job
from dbray.spec.paths import is_folder
from dbray.spec.prompts import AUTO_NOUN, NO_NOUN
from dbray.spec.subject import Subject
from dbray.subjects import validation
from dbray.subjects.listings import Source
from dbray.subjects.places import is_local, local_path


def check_file(file: Path, needs_weights: bool = True) -> Checked:
    """Check a job file and everything that it names, however much of it is wrong.

    Where no weights are needed, the base may be a folder of configurations alone.
    """
    try:
        draft = draft_job(file)
    except SpecError as exc:
        return Checked(problems=list(exc.problems))
    folder = file.resolve().parent
    checked = _check(draft.job, draft.subjects, draft.where, folder, needs_weights)
    return replace(checked, problems=[*draft.problems, *checked.problems], file=file.resolve(),
                   has_default_id=not draft.has_own_id)  # fmt: skip


def check_job(job: Job) -> Checked:
    """Check a job made in Python and what it names. Paths are relative to the working folder."""
    folder = Path.cwd()
    job = anchored(job, folder)
    return _check(job, job.subjects, lambda key: f"job.{key}", folder)


def _check(
    job: Job,
    source: Source | None,
    where: Callable[[str], str],
    folder: Path,
    needs_weights: bool = True,
) -> Checked:
    """Check what a job names. A base of "" and a missing source are reported already."""
    checked = Checked(job)
    if job.base:
        try:
            checked.base = bases.resolve(job.base, job.base_revision, needs_weights)
        except BaseError as exc:
            checked.problems.append(
                Problem("error", where("base"), f"base: {exc}", "change 'base'")
            )
    if checked.base is not None:
        if not checked.base.has_weights:
            checked.problems.append(
                Problem("warning", where("base"), "base: its folder holds no weights: this job can "
                        "be planned, not run", "copy or download the weights too")
            )  # fmt: skip
        checked.problems += check_distilled(checked.base, where)
        checked.base, problems = find_second_stage(job, checked.base, where, needs_weights)
        checked.problems += problems
        serving, problems = find_serve_base(job, checked.base, where)
        checked.problems += problems
        checked.base = replace(checked.base, serves=serving)
        checked.job, checked.sources = resolve_job(job, checked.base)
        checked.problems += _unfit(checked.job, checked.base, where)
        checked.problems += check_second_stage(checked.job, checked.base, where)
        checked.problems += _missing_embedders(checked.job, where)
        checked.problems += check_stop(checked.job, where)
        checked.problems += _unused(job, where)
    if source is not None:
        resolution = largest_resolution(checked.job) if checked.job else None
        found = validation.validate(source, folder=folder, resolution=resolution)
        checked.problems += found.problems
        checked.subjects, checked.invalid = found.subjects, found.invalid
        _settle_nouns(checked, where)
        checked.problems += _unused_clip(checked, where)
    subjects = [one.subject for one in checked.subjects]
    checked.problems += check_storage(job.storage, _folder_of(source, folder), subjects, where)
    if checked.base is not None and checked.job is not None:
        checked.problems += _ablations(subjects)
        checked.naming, problems = names.check_names(checked.job, checked.base, subjects)
        checked.problems += problems
        drawn = checked.naming.drawn if checked.naming else {}
        long = check_job_prompts(checked.job, checked.base, subjects, drawn, where)
        checked.leave_out({problem.subject for problem in long if problem.severity == "error"})
        checked.problems += long
    return checked


def _settle_nouns(checked: Checked, where: Callable[[str], str]) -> None:
    """Replace class nouns that are left to dbray by those that it chooses."""
    if checked.job is None or checked.base is None:
        return
    settled = auto_nouns.settle(checked.subjects, checked.job, checked.base, where)
    checked.subjects, checked.chosen_nouns = settled.subjects, settled.chosen
    checked.invalid = [*checked.invalid, *settled.undecided]
    checked.problems += settled.problems


def _unfit(job: Job, base: Base, where: Callable[[str], str]) -> Iterator[Problem]:
    """Find what the base's family does not have."""
    for what, fix in base.family.unfit(base.layout, job.recipe):
        yield Problem("error", where("recipe"), what, fix)
    if job.recipe.warmup_steps >= job.recipe.steps:
        what = (f"the warm-up of {job.recipe.warmup_steps} steps does not end within the "
                f"{job.recipe.steps} steps")  # fmt: skip
        yield Problem("warning", where("recipe"), what, "lower warmup_steps, or raise steps")
    if job.recipe.crop == "bucket" and job.resources.zero_stage:
        what = "crop: bucket computes a step in several passes, which ZeRO does not"
        yield Problem("error", where("recipe"), what, "set crop to centre, or zero_stage to 0")
    if job.recipe.crop == "bucket" and job.resources.gpus_per_subject > 1:
        what = "crop: bucket computes a step in several passes, whose number differs between GPUs"
        fix = "set crop to centre, or gpus_per_subject to 1"
        yield Problem("error", where("recipe"), what, fix)
    if job.recipe.crop == "bucket" and job.prior.kind == "teacher":
        what = "crop: bucket has class rows of one size only, which a teacher's are not"
        yield Problem("error", where("recipe"), what, "set crop to centre, or prior.kind to images")
    # auto means 1 where there is an obstacle.
    if job.resources.pack not in (1, "auto") and (found := obstacle(job.recipe, job.resources)):
        yield Problem("error", where("resources"), *found)
    for name, section in (("prior", job.prior), ("previews", job.previews)):
        try:
            base.family.check_sampler(section.sampler)
        except BaseError as exc:
            fix = f"set {name}.sampler to one of those, or leave it out"
            yield Problem("error", where(name), str(exc), fix)


def _missing_embedders(job: Job, where: Callable[[str], str]) -> Iterator[Problem]:
    """Find the embedders that the job names and that are not there."""
    scoring = job.scoring
    for name, revision in (
        (scoring.embedder, scoring.embedder_revision),
        (scoring.clip, scoring.clip_revision),
    ):
        try:
            if name is not None:
                embedders.resolve(name, revision)
        except BaseError as exc:
            yield Problem("error", where("scoring"), str(exc), "correct it, or leave it out")
    if scoring.perceptual:
        try:
            embedders.find_perceptual_weights()
        except BaseError as exc:
            yield Problem("error", where("scoring"), str(exc), "install it, or leave it out")


def _unused_clip(checked: Checked, where: Callable[[str], str]) -> Iterator[Problem]:
    """Find a CLIP in the job that neither scores nor chooses class nouns."""
    scoring = checked.job.scoring if checked.job else None
    if scoring is None or scoring.clip is None or scoring.embedder is not None:
        return
    if checked.sources["scoring"]["clip"] != OF_JOB:  # the base's, and the job wants no scores
        return
    if checked.chosen_nouns or any(one.class_noun == AUTO_NOUN for one in checked.invalid):
        return
    yield Problem("error", where("scoring"), "names a clip but no embedder",
                  "add 'embedder: ...': without it nothing is scored")  # fmt: skip


def _ablations(subjects: Sequence[Subject]) -> Iterator[Problem]:
    """Find subjects whose class noun is wrong on purpose."""
    for one in subjects:
        if one.ablation:
            what = f"is an ablation, with {one.ablation}"
            if one.class_noun == NO_NOUN:
                what += ": its prompts have the identifier alone, and no class is kept"
            fix = "give its class noun, unless this is on purpose"
            yield Problem("warning", f"subject {one.id}", what, fix, one.id)


def _unused(job: Job, where: Callable[[str], str]) -> Iterator[Problem]:
    """Find what the job itself says and nothing reads."""
    sampled = job.prior.model_fields_set - {"kind", "prompt"}
    if sampled and not job.prior.makes_images:
        what = f"prior: {', '.join(sorted(sampled))} is of class images, and a teacher uses none"
        yield Problem("warning", where("prior"), what, "leave it out, or set kind to images")


def _folder_of(source: Source | None, folder: Path) -> Path | None:
    """The folder that subjects are read from; None if they are listed elsewhere."""
    if not isinstance(source, str) or not is_local(source):
        return None
    try:
        path = local_path(source, str(folder))
    except (StoreError, ValueError):
        return None
    return path if is_folder(path) else None


def resolve_job(job: Job, base: Base) -> tuple[Job, Sources]:
    """Fill what the user left open; return the source of each value too."""
    preset = job.recipe.preset
    filled = {
        "recipe": defaults.fill(base, job.recipe, preset),
        "prior": defaults.fill(base, job.prior, preset),
        "previews": defaults.fill(base.serving, job.previews, preset),
        "scoring": defaults.fill(base.serving, job.scoring, preset),
    }
    sections: dict[str, object] = {name: one.section for name, one in filled.items()}
    sections["super_resolution"] = defaults.fill_super_resolution(base, job.super_resolution)
    return job.model_copy(update=sections), {name: one.sources for name, one in filled.items()}
