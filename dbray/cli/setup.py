"""Commands that make a job: demo, init."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import yaml

from dbray.cli.jobs import run_file
from dbray.cli.output import print_problems, shell_command, writing
from dbray.errors import SpecError
from dbray.run.options import RunOptions
from dbray.spec.canon import is_commit
from dbray.spec.paths import MINIATURE, anchor_base, is_folder
from dbray.spec.subject import Subject
from dbray.subjects import validation

_JOB_TEMPLATE = """\
# A dbray job. `dbray schema` lists every key with its meaning; paths are relative to this file.
schema: dbray/v1
base: {base}  # miniature, a diffusers folder, or a hub id with base_revision: <commit>{revision}
subjects: {manifest}  # one line per subject: id, class_noun, images
storage: runs  # a folder, or s3://..., gs://...; for models, class images and reports

# Other settings follow the recommendations of the base, else the paper. For example:
# recipe:
#   steps: 800
#   learning_rate: 5.0e-6
#   prior_weight: 1.0  # lambda of the prior-preservation loss
# prior:
#   count: 200  # class images per class noun, made once and shared by all its subjects
# resources:
#   pack: auto  # subjects that train in one batch, by low-rank methods
#   gpus_per_subject: 1
#   checkpoint_every: 200  # steps; useful if a subject takes more than a few minutes
"""

_DEMO_METHOD = """
recipe:
  method: pivotal  # low-rank factors and the identifier's own embeddings: small files, trained fast
resources:
  pack: auto  # several subjects share a batch
"""


def demo(args: argparse.Namespace) -> int:
    """Draw six subjects of three class nouns, and run the main job on them."""
    from dbray.miniature import world

    folder = Path(args.output).resolve()
    photos, job_file = folder / "photos", folder / "demo.yaml"
    with writing(folder):
        subjects = world.write_photographs(photos, num_subjects=6, num_classes=3, seed=0)
        validation.write_jsonl(
            [
                Subject(id=subject_id, class_noun=noun, images=(str(photos / subject_id),))
                for subject_id, noun in subjects
            ],
            folder / "subjects.jsonl",
        )
        job_file.write_text(
            _JOB_TEMPLATE.format(base="miniature", revision="", manifest="subjects.jsonl")
            + _DEMO_METHOD,
            encoding="utf-8",
        )
    print(f"Wrote {len(subjects)} drawn subjects to {folder}/photos and the job {job_file}.")
    address = os.environ.get("RAY_ADDRESS")
    options = RunOptions(retry_failed=True, address=address, command=shell_command("run", job_file))
    code = run_file(job_file, options)
    if code == 0:
        registry, model = str(folder / "runs"), subjects[0][0]
        prompt = "a photo of a {subject} on the beach"
        print("\nPrompt one of the models:")
        print(" ", shell_command("generate", model, prompt, "-n", "4", "--registry", registry))
        print(" ", shell_command("serve", "--registry", registry))
    return code


def init(args: argparse.Namespace) -> int:
    """Write a manifest and a job file for a folder of photographs."""
    photos, job_file = Path(args.photos), Path(args.output)
    manifest_file = _manifest_path(job_file, args.force)
    if not is_folder(photos):
        fix = "give the folder of a subject's photographs, or one with a sub-folder for each"
        raise SpecError.of(args.photos, "is not a folder", fix)
    base, revision = _base_to_write(args.base, args.base_revision)
    subjects, problems = validation.scan(photos.resolve(), args.class_noun)
    if any(problem.severity == "error" for problem in problems):
        raise SpecError(problems)
    print_problems(problems)
    with writing(job_file):
        validation.write_jsonl(subjects, manifest_file)
        job_file.write_text(_JOB_TEMPLATE.format(
            base=_scalar(base), manifest=_scalar(manifest_file.name),
            revision=f"\nbase_revision: {_scalar(revision)}" if revision else "",
        ), encoding="utf-8")  # fmt: skip
    nouns = {subject.class_noun for subject in subjects}
    print(f"Wrote {manifest_file} ({len(subjects)} subjects, {len(nouns)} class nouns) and "
          f"{job_file}.")  # fmt: skip
    if base == MINIATURE:
        print("Its base is the miniature, which only knows its drawn world: for photographs, set "
              "'base' to a real one, such as a Stable Diffusion.")  # fmt: skip
    print("Next:", shell_command("validate", job_file), "&&", shell_command("run", job_file))
    return 0


def _manifest_path(job_file: Path, may_overwrite: bool) -> Path:
    """Return the path of a job file's manifest. Raises SpecError if either cannot be written."""
    if is_folder(job_file):
        fix = "name a file in it, such as job.yaml"
        raise SpecError.of(str(job_file), "is a folder", fix)
    manifest_file = job_file.with_suffix(".jsonl")
    if manifest_file == job_file:
        fix = "name the job file *.yaml: its manifest has the same name, with .jsonl"
        raise SpecError.of(str(job_file), "would be overwritten by its manifest", fix)
    for file in (job_file, manifest_file):
        if file.exists() and not may_overwrite:
            fix = "choose another -o, or overwrite it with --force"
            raise SpecError.of(str(file), "exists already", fix)
    return manifest_file


def _base_to_write(base: str, revision: str | None) -> tuple[str, str | None]:
    """Return the base and revision to write: a folder as an absolute path. Raises SpecError."""
    base = anchor_base(base, Path.cwd())
    if base == MINIATURE or is_folder(base):
        return base, None
    if not is_commit(revision or ""):
        what = "is neither 'miniature' nor a folder, and a hub id needs its commit"
        fix = "check the path, or add --base-revision with the commit's 40 hex digits"
        raise SpecError.of(f"--base {base}", what, fix)
    return base, revision


def _scalar(text: str) -> str:
    """Return a text as YAML, quoted if necessary."""
    return yaml.safe_dump(text, width=2**20, allow_unicode=True).splitlines()[0]
