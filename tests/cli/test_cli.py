"""The command line: output, exit codes, and libraries that it does not import."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kit.records import publish, record_of
from kit.worlds import write_job, write_photos
from PIL import Image

from dbray import bases
from dbray.bases import generate
from dbray.cli import main
from dbray.planning.checks import check_job
from dbray.planning.plan import make_plan
from dbray.records.models import Registry
from dbray.spec.job import Job
from dbray.storage.store import Store

SUBJECTS = {"rex": "dog", "tom": "cat"}


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dbray", *argv], capture_output=True, text=True)


@pytest.fixture(scope="module")
def registry(tiny_base, tmp_path_factory):
    """A storage with one published model, in the form of a lane's."""
    from safetensors.torch import save

    folder = tmp_path_factory.mktemp("registry")
    job = Job.load(write_job(folder, tiny_base, SUBJECTS))
    base = bases.resolve(job.base)
    ready = check_job(job).ready()
    plan = make_plan(ready, Store(job.storage))
    planned = next(one for one in plan.to_train if one.subject.id == "rex")
    unet = bases.load(base).models["unet"].state_dict()
    changed = {name: (value * 1.1).half() for name, value in unet.items()}
    publish(job.storage, record_of(plan, planned, steps=8), save(changed))
    return job.storage


def test_help_imports_neither_torch_nor_ray():
    code = """
import sys
from dbray.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
assert not {"torch", "ray", "diffusers", "transformers"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "validate" in done.stdout


def test_run_reports_ten_errors_at_once_and_starts_nothing(tmp_path, tiny_base):
    job = write_job(tmp_path, tiny_base, {"rex": "dog", "tom": "cat", "ace": "cat"})
    photos = tmp_path / "photos"
    (photos / "rex" / "0.png").write_bytes(b"")
    (photos / "tom" / "0.png").write_bytes((photos / "tom" / "0.png").read_bytes()[:200])
    (photos / "ace" / "0.png").write_text("no image")
    good = str(photos / "rex" / "1.png")
    rows = [
        {"id": "rex", "class_noun": "dog", "images": [str(photos / "rex")]},
        {"id": "tom", "class_noun": "cat", "images": [str(photos / "tom")]},
        {"id": "ace", "class_noun": "cat", "images": [str(photos / "ace" / "0.png")]},
        {"id": "rex", "class_noun": "dog", "images": [good]},
        {"id": "../up", "class_noun": "dog", "images": [good]},
        {"id": "none", "class_noun": "dog", "images": []},
        {"id": "gone", "class_noun": "dog", "images": ["missing.png"]},
        {"id": "odd", "class_noun": "dog", "images": [good], "colour": "red"},
        {"id": "noun", "images": [good]},
    ]
    (tmp_path / "m.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows) + '{"id": "broken"\n'
    )
    job.write_text(job.read_text().replace("subjects: photos", "subjects: m.jsonl"))
    done = run("validate", str(job), "--json")
    assert done.returncode == 2
    found = json.loads(done.stdout)
    errors = [one for one in found["problems"] if one["severity"] == "error"]
    wheres = " ".join(one["where"] for one in errors)
    assert len(errors) >= 10
    assert all(f"m.jsonl:{line}" in wheres for line in range(1, 11))
    assert all(one["fix"] for one in errors)

    ran = run("run", str(job))
    assert ran.returncode == 2
    assert "nothing ran" in ran.stderr
    assert not (tmp_path / "runs").exists()


def test_init_writes_a_job_that_validates(tmp_path, capsys):
    write_photos(tmp_path / "photos", SUBJECTS)
    job = tmp_path / "my.yaml"
    assert main(["init", str(tmp_path / "photos"), "-o", str(job)]) == 0
    assert main(["init", str(tmp_path / "photos"), "-o", str(job)]) == 2
    assert "--force" in capsys.readouterr().err
    rows = [json.loads(line) for line in (tmp_path / "my.jsonl").read_text().splitlines()]
    assert {row["id"]: row["class_noun"] for row in rows} == SUBJECTS
    assert rows[0]["images"][0].startswith("photos/")
    assert main(["validate", str(job)]) == 0
    assert "2 usable subject(s), 0 error(s)" in capsys.readouterr().out


@pytest.mark.parametrize("is_active", [True, False])
def test_the_printed_next_command_works_in_this_shell(tmp_path, monkeypatch, capsys, is_active):
    write_photos(tmp_path / "photos", SUBJECTS)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent) if is_active else str(tmp_path))
    assert main(["init", str(tmp_path / "photos"), "-o", str(tmp_path / "my.yaml")]) == 0
    program = capsys.readouterr().out.partition("Next: ")[2].split()[0]
    assert shutil.which(program)


@pytest.mark.parametrize("output", ["z.jsonl", ".", "", "file/job.yaml"])
def test_init_rejects_an_invalid_output(tmp_path, monkeypatch, capsys, output):
    write_photos(tmp_path / "photos", SUBJECTS)
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    assert main(["init", "photos", "--force", "-o", output]) == 2
    assert "fix:" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "photos"]


def test_init_rejects_folders_with_equal_ids(tmp_path, capsys):
    write_photos(tmp_path / "photos", {"Mein Hund": "dog", "mein-hund": "dog"})
    arguments = ["init", str(tmp_path / "photos"), "-o", str(tmp_path / "my.yaml")]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in ("photos/Mein Hund", "photos/mein-hund", "rename"))
    assert main(["init", str(tmp_path / "nope"), "-o", str(tmp_path / "my.yaml")]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_the_demo_rejects_an_output_that_is_not_a_folder(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["demo", "-o", str(tmp_path / "file")]) == 2
    assert "choose another -o" in capsys.readouterr().err


def test_printed_commands_are_quoted_for_a_shell(tmp_path, capsys):
    write_photos(tmp_path / "photos", SUBJECTS)
    job = tmp_path / "my pets.yaml"
    assert main(["init", str(tmp_path / "photos"), "-o", str(job)]) == 0
    first, second = capsys.readouterr().out.partition("Next: ")[2].split("&&")
    assert shlex.split(first)[1:] == ["validate", str(job)]
    assert shlex.split(second)[1:] == ["run", str(job)]


def test_names_that_are_not_utf8_are_printed(tmp_path):
    write_photos(tmp_path / "photos", SUBJECTS)
    name = os.fsdecode(b"\xff.png")
    (tmp_path / "photos" / "rex" / "0.png").rename(tmp_path / "photos" / "rex" / name)
    done = run("init", str(tmp_path / "photos"), "-o", str(tmp_path / "my.yaml"))
    assert done.returncode == 2
    assert "udcff.png" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["run", "j", "--max-failures", "-1"],
                                   ["generate", "rex", "a dog", "-n", "0"]])  # fmt: skip
def test_counts_below_their_minimum_are_rejected(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "or more" in capsys.readouterr().err


def test_init_reports_missing_class_nouns(tmp_path, capsys):
    write_photos(tmp_path / "photos", SUBJECTS)
    (tmp_path / "photos" / "tom" / "class.txt").unlink()
    arguments = ["init", str(tmp_path / "photos"), "-o", str(tmp_path / "my.yaml")]
    assert main(arguments) == 2
    assert "tom" in capsys.readouterr().err
    assert main([*arguments, "--class", "cat"]) == 0


def test_init_writes_a_base_that_the_job_finds(tmp_path, tiny_base, monkeypatch, capsys):
    write_photos(tmp_path / "photos", SUBJECTS)
    (tmp_path / "mine").symlink_to(tiny_base)
    monkeypatch.chdir(tmp_path)
    arguments = ["init", "photos", "-o", "sub/my: pets.yaml", "--force"]
    assert main([*arguments, "--base", "./mine"]) == 0
    assert main(["validate", "sub/my: pets.yaml"]) == 0
    capsys.readouterr()
    for wrong in (["no/where"], ["~nobody/x"], ["owner/name", "--base-revision", "main"]):
        assert main([*arguments, "--base", *wrong]) == 2
        assert "--base-revision" in capsys.readouterr().err
    assert main([*arguments, "--base", "owner/name", "--base-revision", "1" * 40]) == 0
    job = Job.load("sub/my: pets.yaml")
    assert (job.base, job.base_revision) == ("owner/name", "1" * 40)


@pytest.mark.parametrize("command", ["validate", "plan", "run"])
@pytest.mark.parametrize("wrong", ["stepz: 1", "storage: taken", "base: /nowhere/at/all"])
def test_errors_in_job_and_manifest_are_reported_together(
    tmp_path, tiny_base, capsys, command, wrong
):
    job = write_job(tmp_path, tiny_base, SUBJECTS)
    (tmp_path / "taken").touch()
    (tmp_path / "photos" / "rex" / "0.png").write_text("no image")
    key = wrong.partition(":")[0]
    rest = [line for line in job.read_text().splitlines() if not line.startswith(f"{key}:")]
    job.write_text("\n".join([*rest, wrong]))
    assert main([command, str(job)]) == 2
    printed = "".join(capsys.readouterr())
    assert f"job.yaml:{len(rest) + 1}: {key}" in printed
    assert "0.png" in printed


def test_errors_in_inline_subjects_have_their_own_lines(tmp_path, tiny_base, capsys):
    job = write_job(tmp_path, tiny_base, SUBJECTS)
    (tmp_path / "photos" / "tom" / "0.png").write_text("no image")
    rows = [{"id": "Bad Id", "class_noun": "dog", "images": "photos/rex"},
            {"id": "tom", "class_noun": "cat", "images": "photos/tom"}]  # fmt: skip
    lines = ["subjects:", *(f"- {json.dumps(row)}" for row in rows)]
    rest = [line for line in job.read_text().splitlines() if not line.startswith("subjects:")]
    job.write_text("\n".join([*lines, *rest]))
    assert main(["validate", str(job)]) == 2
    printed = capsys.readouterr().out
    assert f"{job}:2: id: 'Bad Id'" in printed
    assert f"{job}:3: {tmp_path}/photos/tom/0.png" in printed


@pytest.mark.parametrize("inline", [True, False])
def test_validate_checks_subjects_of_a_broken_job(tmp_path, tiny_base, capsys, inline):
    job = write_job(tmp_path, tiny_base, SUBJECTS)
    (tmp_path / "photos" / "rex" / "0.png").write_text("no image")
    subjects = "s3://user:key@none.invalid/list.txt"
    if inline:
        rows = [{"id": name, "class_noun": noun, "images": [f"photos/{name}"]}
                for name, noun in SUBJECTS.items()]  # fmt: skip
        subjects = json.dumps([*rows, {"id": "ace", "class_noun": "cat", "image": []}])
    job.write_text(
        job.read_text().replace(f"base: {tiny_base}", "base: /nowhere/at/all")
        .replace("subjects: photos", f"subjects: {subjects}") + "stepz: 1\n"
    )  # fmt: skip
    assert main(["validate", str(job), "--json"]) == 2
    whats = [one["what"] for one in json.loads(capsys.readouterr().out)["problems"]]
    assert any("stepz" in what for what in whats)
    assert any("/nowhere/at/all" in what for what in whats)
    if inline:
        assert any("0.png" in what for what in whats)
        assert "image: unknown key" in whats
        assert not any("valid string" in what for what in whats)
    else:
        assert "is not a manifest" in whats


def test_validate_checks_identifiers(tmp_path, tiny_base, capsys):
    wide = write_job(tmp_path / "wide", tiny_base, SUBJECTS,
                     identifiers={"rank_range": [900000, 900001]})  # fmt: skip
    assert main(["validate", str(wide)]) == 2
    assert "rank_range" in capsys.readouterr().out
    narrow = write_job(tmp_path / "narrow", tiny_base, SUBJECTS,
                       identifiers={"rank_range": [188, 189]})  # fmt: skip
    assert main(["validate", str(narrow)]) == 2
    assert "2 subjects need an identifier" in capsys.readouterr().out
    named = write_job(tmp_path / "named", tiny_base, {"rex": "dog"})
    row = {"id": "rex", "class_noun": "dog", "images": ["photos/rex"], "identifier": "sks"}
    (named.parent / "m.jsonl").write_text(json.dumps(row))
    named.write_text(named.read_text().replace("subjects: photos", "subjects: m.jsonl"))
    assert main(["validate", str(named)]) == 0
    assert "'sks' is" in capsys.readouterr().out


def test_validate_imports_neither_torch_nor_ray(tmp_path, tiny_base):
    job = write_job(tmp_path, tiny_base, SUBJECTS)
    code = f"""
import sys
from dbray.cli import main
assert main(["validate", {str(job)!r}]) == 0
assert not {{"torch", "ray", "diffusers"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_plan_prints_what_would_run(tmp_path, tiny_base, capsys):
    job = write_job(tmp_path, tiny_base, SUBJECTS, recipe={"preset": "hackathon"})
    (tmp_path / "photos" / "rex" / "0.png").unlink()
    assert main(["plan", str(job), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert ["only 2 images" in one["what"] for one in facts["warnings"]] == [True]
    assert sorted(facts["subjects_to_train"]) == ["rex", "tom"]
    assert facts["class_images_to_make"] == 0
    assert facts["sources"]["recipe"]["prior_weight"] == "preset hackathon"
    assert facts["sources"]["prior"]["count"] == "the job"
    assert main(["plan", str(job)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "2 subjects of 2 class nouns" in printed
    assert "recipe the job: steps 8, learning_rate 0.001 preset hackathon: method full" in printed
    assert "Stable Diffusion 1.x" not in printed


def test_models_are_listed_and_shown(registry, capsys):
    assert main(["models", "list", "--registry", registry, "--json"]) == 0
    [brief] = json.loads(capsys.readouterr().out)
    assert (brief["id"], brief["class_noun"]) == ("rex", "dog")
    assert main(["models", "show", "rex", "--registry", registry]) == 0
    assert "dog" in capsys.readouterr().out
    assert main(["models", "show", "rax", "--registry", registry]) == 2
    assert "did you mean rex" in capsys.readouterr().err


def test_generate_writes_images_with_their_parameters(registry, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["generate", "rex", "a photo of {subject}", "-n", "2", "--steps", "2",
                 "--registry", registry, "-o", str(out), "--seed", "7"]  # fmt: skip
    assert main(arguments) == 0
    files = sorted(out.glob("*.png"))
    assert [file.name for file in files] == ["rex-7.png", "rex-8.png"]
    with Image.open(files[0]) as image:
        assert image.size == (32, 32)
        about = json.loads(image.info["parameters"])
    assert about["seed"] == 7
    assert about["prompt"].endswith(" dog")
    first = files[0].read_bytes()
    files[0].write_text("mine")
    capsys.readouterr()
    assert main(arguments) == 0
    again = [out / "rex-7-2.png", out / "rex-8-2.png"]
    assert capsys.readouterr().out.splitlines() == [str(file) for file in again]
    assert files[0].read_text() == "mine"
    assert again[0].read_bytes() == first


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["base", "a photo of {subject}", "--steps", "2"], "class noun"),
        (["rex", "a {subject}", "--steps", "0"], "steps: Input should be greater"),
        (["rex", "a {subject}", "--steps", "1000"], "steps: Input should be less"),
        (["rex", "a {subject}", "--guidance", "0"], "guidance: Input should be greater"),
        (["rex", "a {subject}", "--seed", "-1"], "seed: Input should be greater"),
    ],
)
def test_generate_rejects_invalid_arguments(registry, tmp_path, capsys, arguments, reason):
    out = tmp_path / "out"
    assert main(["generate", *arguments, "--registry", registry, "-o", str(out)]) == 2
    assert reason in capsys.readouterr().err
    assert not out.exists()


LONG = " on the beach in the photo of the clock on the beach in the clock"


def test_generate_samples_in_batches(registry, tmp_path, monkeypatch):
    sizes, real = [], generate.generate

    def counted(backbone, prompts, *rest):
        sizes.append(len(prompts))
        return real(backbone, prompts, *rest)

    monkeypatch.setattr(generate, "generate", counted)
    monkeypatch.setattr(generate, "batch_size", lambda _: 2)
    arguments = ["generate", "rex", "a {subject}", "-n", "5", "--steps", "1"]
    assert main([*arguments, "--registry", registry, "-o", str(tmp_path)]) == 0
    assert sizes == [2, 2, 1]
    assert len(list(tmp_path.glob("rex-*.png"))) == 5


@pytest.mark.parametrize("model", ["rex", "base"])
def test_generate_warns_of_prompts_that_are_cut_off(registry, tiny_base, tmp_path, capsys, model):
    name = {"rex": "{subject}", "base": "dog"}[model]
    arguments = ["generate", model, f"a {name}{LONG}", "--negative", LONG, "--steps", "1",
                 "--registry", registry, "--base", str(tiny_base), "-o", str(tmp_path)]  # fmt: skip
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "warning: prompt: the base does not read" in printed
    assert "warning: --negative: the base does not read" in printed


def test_generate_rejects_a_prompt_whose_subject_is_cut_off(registry, tmp_path, capsys):
    out = tmp_path / "out"
    prompt = LONG.strip() + " of a {subject}"
    arguments = ["generate", "rex", prompt, "--registry", registry, "-o", str(out)]
    assert main(arguments) == 2
    assert "error: prompt: the base does not read" in capsys.readouterr().err
    assert not out.exists()


def test_an_output_that_is_a_file_is_rejected(registry, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for command in (
        ["models", "export", "rex"],
        ["generate", "rex", "a {subject}", "--steps", "1"],
    ):
        assert main([*command, "-o", str(tmp_path / "file"), "--registry", registry]) == 2
        assert "choose another -o" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("form", ["path", "relative", "uri"])
def test_report_accepts_a_folder_or_a_uri(tmp_path, monkeypatch, capsys, form):
    folder = tmp_path / "runs" / "jobs" / "pets"
    folder.mkdir(parents=True)
    job = Job(id="pets", base="miniature", subjects=(), storage=str(tmp_path / "runs"))
    about = {"job": job.model_dump(mode="json", by_alias=True), "base": {"name": "miniature"}}
    (folder / "job.json").write_text(json.dumps(about))
    monkeypatch.chdir(folder.parent)
    given = {"path": f"{folder}/", "relative": "pets", "uri": folder.as_uri()}[form]
    assert main(["report", given]) == 0
    assert (folder / "report.html").is_file()
    assert "report.html" in capsys.readouterr().out
    for wrong in (f"{given.rstrip('/')}x", str(tmp_path)):
        assert main(["report", wrong]) == 2
        assert "is not the folder of a job" in capsys.readouterr().err


def test_serve_passes_the_base_to_the_server(tiny_base, tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr("dbray.serving.launch", lambda *args, **options: given.update(options))
    monkeypatch.chdir(tiny_base.parent)
    assert main(["serve", "--registry", str(tmp_path), "--base", tiny_base.name]) == 0
    assert given["base"] == str(tiny_base)
    hub = ["--base", "owner/name", "--base-revision", "1" * 40]
    assert main(["serve", "--registry", str(tmp_path), *hub]) == 0
    assert (given["base"], given["base_revision"]) == ("owner/name", "1" * 40)


def test_an_exported_model_loads_in_diffusers(registry, tmp_path):
    from diffusers import StableDiffusionPipeline

    folder = tmp_path / "exported"
    assert main(["models", "export", "rex", "-o", str(folder), "--registry", registry]) == 0
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    record = Registry(Store(registry)).find("rex")
    base = bases.load(bases.resolve(record.base))
    exported = pipeline.unet.state_dict()
    for name, value in base.models["unet"].state_dict().items():
        wanted = (value * 1.1).half().numpy()
        np.testing.assert_array_equal(exported[name].half().numpy(), wanted, err_msg=name)


def test_remove_asks_for_confirmation_and_deletes_every_file(registry, tmp_path, capsys):
    copy = tmp_path / "runs"
    shutil.copytree(registry, copy)
    assert main(["models", "remove", "rex", "--registry", str(copy)]) == 2
    assert main(["models", "remove", "rex", "--registry", str(copy), "--yes"]) == 0
    assert not list((copy / "models").glob("rex*"))


def test_schema_is_json(capsys):
    assert main(["schema"]) == 0
    assert "recipe" in json.loads(capsys.readouterr().out)["properties"]
    assert main(["schema", "--subject"]) == 0
    assert "class_noun" in json.loads(capsys.readouterr().out)["properties"]


def test_status_of_an_empty_storage_lists_no_jobs(tmp_path, capsys):
    assert main(["status", str(tmp_path)]) == 0
    assert "no jobs" in capsys.readouterr().out
    assert main(["status", str(tmp_path / "nowhere")]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_unwritable_storage_is_reported_and_not_changed(tiny_base, tmp_path, capsys):
    job = write_job(tmp_path, tiny_base, SUBJECTS, storage="taken/runs")
    (tmp_path / "taken").write_text("a file where a folder should be")
    assert main(["run", str(job)]) == 2
    assert "storage" in capsys.readouterr().err
    assert (tmp_path / "taken").read_text() == "a file where a folder should be"
