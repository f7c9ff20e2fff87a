"""Job files: every mistake at once, with its line and a fix."""

from __future__ import annotations

import pytest

from dbray.errors import SpecError
from dbray.spec import foreign_keys
from dbray.spec.job import Job, draft_job
from dbray.spec.recipe import Recipe
from dbray.spec.subject import Subject


def load(tmp_path, text):
    file = tmp_path / "my job.yaml"
    file.write_text(text)
    return Job.load(file)


def problems(tmp_path, text):
    with pytest.raises(SpecError) as caught:
        load(tmp_path, text)
    return caught.value.problems


def test_paths_are_relative_to_the_job_file(tmp_path):
    (tmp_path / "base").mkdir()
    job = load(tmp_path, "base: base\nsubjects: photos\nstorage: s3://bucket/runs\n")
    assert job.subjects == str(tmp_path / "photos")
    assert job.base == str(tmp_path / "base")
    assert job.storage == "s3://bucket/runs"
    assert job.id == "my-job"


def test_a_folder_named_like_the_miniature_does_not_hide_it(tmp_path):
    (tmp_path / "miniature").mkdir()
    assert load(tmp_path, "base: miniature\nsubjects: photos\n").base == "miniature"
    assert load(tmp_path, "base: ./miniature\nsubjects: photos\n").base != "miniature"


def test_all_mistakes_are_reported_with_line_and_fix(tmp_path):
    found = problems(
        tmp_path,
        "base: miniature\n"
        "subjects: photos\n"
        "recipe:\n"
        "  stepz: 100\n"
        "  learning_rate: -1\n"
        "prior:\n"
        "  prompt: a photo\n"
        "previews:\n"
        "  prompts: ['a {thing}']\n"
        "id: Not An Id\n",
    )
    lines = {problem.where.rsplit(":", 1)[1]: problem for problem in found}
    assert set(lines) == {"4", "5", "7", "9", "10"}
    assert "stepz" in lines["4"].fix
    assert "{class}" in lines["7"].what
    assert "{thing}" in lines["9"].what
    assert all(problem.fix for problem in found)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("base: [", "YAML"),
        ("just a text", "mapping"),
        ("", "mapping"),
        ("subjects: x\n", "base"),
        ("base: miniature\nsubjects: x\nrecipe: {method: sorcery}\n", "full"),
        ("base: owner/name\nbase_revision: main\nsubjects: x\n", "40 hex digits"),
        ("base: miniature\nsubjects: [{id: base, class_noun: dog, images: [a]}]\n", "untouched"),
    ],
)
def test_broken_files_are_reported(tmp_path, text, what):
    found = problems(tmp_path, text)
    assert any(what in problem.what for problem in found)


@pytest.mark.parametrize(
    ("section", "fix"),
    [
        ("recipe: {pack: 2}", "move it under 'resources'"),
        ("resources: {count: 5}", "move it under 'prior'"),
        ("prior: {images: 5}", "move it under 'scoring'"),
        ("recipe: {storage: runs}", "move 'storage' to the top of the file"),
    ],
)
def test_a_key_in_the_wrong_section_is_sent_to_its_own(tmp_path, section, fix):
    [problem] = problems(tmp_path, f"base: miniature\nsubjects: x\n{section}\n")
    assert problem.what.endswith("unknown key")
    assert problem.fix == fix


def test_a_repeated_key_is_reported_with_both_lines(tmp_path):
    text = "base: miniature\nrecipe: {steps: 1}\nsubjects: x\nrecipe:\n  steps: 2\n"
    [problem] = problems(tmp_path, text)
    assert problem.where.endswith(":4")
    assert "'recipe'" in problem.what
    assert "line 2" in problem.what


def test_a_mistake_in_an_inline_subject_is_reported_once_with_its_line(tmp_path):
    text = (
        "base: miniature\n"
        "subjects:\n"
        "  - {id: rex, class_noun: dog, images: [rex]}\n"
        "  - id: tom\n"
        "    class_noun: cat\n"
        "    images: [tom]\n"
        "    caption: [a]\n"
    )
    [problem] = problems(tmp_path, text)
    assert problem.where.endswith(":7")
    assert problem.what.startswith("caption:")
    assert problem.subject == "tom"


def test_a_draft_is_the_job_without_its_mistakes(tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text(
        "bass: miniature\n"
        "recipe: {steps: 0}\n"
        "identifiers: {seed: 3}\n"
        "subjects:\n"
        "  - {id: rex, class_noun: dog, images: [rex]}\n"
        "  - {id: tom, images: [tom]}\n"
    )
    draft = draft_job(file)
    assert {problem.what.split(":")[0] for problem in draft.problems} == {
        "bass", "base", "recipe.steps",
    }  # fmt: skip
    assert draft.job.base == ""
    assert draft.job.recipe == Recipe()
    assert draft.job.identifiers.seed == 3
    assert [(one.where, one.value["id"]) for one in draft.subjects] == [
        (f"{file}:5", "rex"), (f"{file}:6", "tom"),
    ]  # fmt: skip
    file.write_text("stepz: 1\nbase: ./b\nsubjects: s3://b/m.jsonl\n")
    draft = draft_job(file)
    assert (draft.job.base, draft.subjects) == (str(tmp_path / "b"), "s3://b/m.jsonl")
    file.write_text("base: miniature\nsubjects:\n")
    assert draft_job(file).subjects is None


def test_inline_subjects_have_the_form_of_manifests(tmp_path):
    text = "base: miniature\nsubjects: [{subject_id: rex, class_noun: dog, images: photos/rex}]\n"
    assert load(tmp_path, text).subjects == (
        Subject(id="rex", class_noun="dog", images=(str(tmp_path / "photos/rex"),)),
    )


@pytest.mark.parametrize(
    ("text", "what", "fix"),
    [
        ("recipe: {stepz: 3}", "unknown key", "'steps'"),
        ("1.5: 3", "1.5: unknown key", "remove"),
        ("2026-01-01: 3", "2026-01-01: unknown key", "remove"),
        ("steps: 3", "unknown key", "under 'recipe'"),
        ("recipe:", "is empty", "omit it"),
        ("prior: {count: }", "is empty", "Class images"),
        ("resources: 3", "a mapping", "keys under it"),
        ("identifiers: {rank_range: 5}", "a list, not 5", "first included"),
        ("id: 5", "text, not 5", "quotes"),
        ("id:", "is empty", "Name of the job"),
        ("id: Rex!", "'Rex!' is not a valid id", "lower-case"),
        ("recipe: {max_grad_norm: .inf}", "finite", "inf"),
        ("resources: {lease_seconds: .nan}", "finite", "nan"),
        ("storage: foo://x", "foo://", "foo://x"),
        ("storage: ''", "is empty", "storage"),
        ("recipe: {steps: 12:30}", "a whole number, not '12:30'", "decimal digits"),
        ("recipe: {steps: 0x10}", "a whole number, not '0x10'", "decimal digits"),
        ("recipe: {steps: true}", "a whole number, not 'true'", "decimal digits"),
        ("recipe: {steps: yes}", "a whole number, not 'yes'", "decimal digits"),
        ("recipe: {prior_weight: true}", "a number, not 'true'", "decimal digits"),
        ("recipe: {learning_rate: 1:30}", "a number, not '1:30'", "decimal digits"),
        ("recipe: {flip: 12}", "true or false, not 12", "true or false"),
        ("identifiers: {rank_range: [true, 50]}", "a whole number, not 'true'", "decimal digits"),
        ("resources: {zero_stage: true}", "should be 0, 1, 2 or 3", "'true'"),
        ("recipe: &a [*a]", "alias *a", "write its value out"),
    ],
)
def test_mistakes_are_reported_in_plain_words(tmp_path, text, what, fix):
    [problem] = problems(tmp_path, f"base: miniature\nsubjects: x\n{text}\n")
    assert what in problem.what
    assert fix in problem.fix


@pytest.mark.parametrize("path", ["~nobody9/x", "a" * 300])
def test_missing_paths_are_not_checked_by_the_job_file(tmp_path, path):
    job = load(tmp_path, f"base: {path}\nsubjects: {path}\n")
    assert job.subjects == str(tmp_path / path)


@pytest.mark.parametrize("key", ["base", "subjects", "storage"])
def test_control_characters_in_paths_are_rejected(tmp_path, key):
    values = {"base": "miniature", "subjects": "x", key: '"a\\0b"'}
    [problem] = problems(tmp_path, "".join(f"{k}: {v}\n" for k, v in values.items()))
    assert problem.what.startswith(f"{key}: not a path")


def test_a_job_file_whose_name_gives_no_id_is_an_error(tmp_path):
    file = tmp_path / "日本.yaml"
    file.write_text("base: miniature\nsubjects: x\n")
    with pytest.raises(SpecError, match="add 'id"):
        Job.load(file)


def test_a_missing_file_is_reported(tmp_path):
    with pytest.raises(SpecError, match="does not exist"):
        Job.load(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("written", "read"), [("0200", 200), ("1_000", 1000), ("'7'", 7), ("1e3", 1000), ("3.0", 3)]
)
def test_numbers_are_read_as_written(tmp_path, written, read):
    """YAML 1.1 reads 0200 as 128."""
    job = load(tmp_path, f"base: miniature\nsubjects: x\nrecipe: {{steps: {written}}}\n")
    assert job.recipe.steps == read


@pytest.mark.parametrize("name", ["no", "on", "2026-01-01", "007", "12:30"])
def test_texts_are_read_as_written(tmp_path, name):
    """YAML 1.1 reads false, true, a date, 7 and 750."""
    assert load(tmp_path, f"base: miniature\nsubjects: {name}\n").subjects.endswith(f"/{name}")


@pytest.mark.parametrize(("written", "read"), [("yes", True), ("off", False), ("true", True)])
def test_booleans_may_be_words(tmp_path, written, read):
    job = load(tmp_path, f"base: miniature\nsubjects: x\nrecipe: {{flip: {written}}}\n")
    assert job.recipe.flip is read


@pytest.mark.parametrize("theirs", foreign_keys.OURS)
def test_a_key_of_another_trainer_suggests_the_dbray_key(tmp_path, theirs):
    [problem] = [
        problem
        for problem in problems(tmp_path, f"base: miniature\nsubjects: x\n{theirs}: 1\n")
        if problem.what == f"{theirs}: unknown key"
    ]
    section, _, ours = foreign_keys.OURS[theirs].rpartition(".")
    assert f"write '{ours}'" in problem.fix
    owner = Job.model_fields[section].annotation if section else Job
    assert ours in owner.model_fields
    assert (f"under '{section}'" in problem.fix) == bool(section)


def test_keys_of_other_trainers_in_and_without_a_section_have_fixes(tmp_path):
    text = "base: miniature\nsubjects: x\nrecipe: {lr: 1.0e-4}\n--with-prior-preservation: true\n"
    theirs, ours = sorted(problems(tmp_path, text), key=lambda problem: problem.what)
    assert ours.fix == "write 'learning_rate' instead of 'lr'"
    assert theirs.fix.startswith("remove '--with-prior-preservation': prior preservation is on")
