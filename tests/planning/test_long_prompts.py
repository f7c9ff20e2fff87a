"""Prompts that are too long for the base are reported before anything runs."""

from __future__ import annotations

import json

import pytest
from kit.worlds import write_job

from dbray.planning.checks import check_file

SUBJECTS = {"rex": "dog", "tom": "cat"}
# The tiny base reads 14 tokens.
END = " on the beach in the photo of the clock on the beach in the clock"


def problems_of(job):
    return [(one.severity, one.subject) for one in check_file(job).problems
            if "does not read" in one.what]  # fmt: skip


@pytest.fixture
def listed(tmp_path, tiny_base):
    """Make a job whose one subject has these captions."""

    def job(*captions):
        images = [f"photos/rex/{number}.png" for number in range(3)]
        row = {"id": "rex", "class_noun": "dog", "images": images, "captions": captions}
        other = {"id": "tom", "class_noun": "cat", "images": "photos/tom"}
        (tmp_path / "all.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(other)}\n")
        return write_job(tmp_path, tiny_base, SUBJECTS, subjects="all.jsonl")

    return job


def test_a_cut_off_caption_is_a_warning_or_without_its_subject_an_error(listed):
    short, long, late = "a {subject}", "a {subject}" + END, END + " of a {subject}"
    assert problems_of(listed(short, short, short)) == []
    assert problems_of(listed(short, long, long)) == [("warning", "rex")]
    assert problems_of(listed(short, long, late)) == [("warning", "rex"), ("error", "rex")]
    [warning] = [one for one in check_file(listed(short, short, long)).problems if one.subject]
    kept = int(warning.fix.removeprefix("shorten it to ").removesuffix(" characters"))
    filled = long.replace("{subject}", check_file(listed(short, short, short)).naming.drawn["rex"]
                          + " dog")  # fmt: skip
    assert f"{filled[kept:].strip()[:40]!r}" in warning.what
    # The fix: the filled caption must have that length.
    assert problems_of(listed(short, short, "a {subject}" + END[: kept - len(filled)])) == []


def test_a_subject_with_an_unread_caption_can_be_skipped(listed):
    short, late = "a {subject}", END + " of a {subject}"
    checked = check_file(listed(late, short, short))
    ready = checked.ready(skip_invalid=True)
    assert [one.id for one in ready.invalid] == ["rex"]
    assert list(ready.naming.ids) == ["tom"]
    assert [one.subject.id for one in ready.subjects] == ["tom"]


@pytest.mark.parametrize(("section", "prompt", "severity"), [
    ("prior", "a {class}" + END, "warning"),
    ("prior", END + " of a {class}", "error"),
    ("previews", "a {subject}" + END, "warning"),
    ("previews", END + " of a {subject}", "error"),
    ("previews", END, "warning"),
    ("previews", "a {class}" + END + " {subject}", "error"),
])  # fmt: skip
def test_prompts_of_a_job_are_reported_once_with_their_line(
    tmp_path, tiny_base, section, prompt, severity
):
    text = {"prior": {"prompt": prompt}, "previews": {"prompts": [prompt]}}[section]
    job = write_job(tmp_path, tiny_base, SUBJECTS, **{section: text})
    [problem] = [one for one in check_file(job).problems if "does not read" in one.what]
    assert problem.severity == severity
    line = job.read_text().splitlines().index(f"{section}:") + 1
    assert problem.where == f"{job}:{line}"


def test_class_prompts_that_no_subject_uses_are_not_reported(tmp_path, tiny_base):
    job = write_job(tmp_path, tiny_base, SUBJECTS, recipe={"prior_weight": 0},
                    prior={"prompt": "a {class}" + END})  # fmt: skip
    assert problems_of(job) == []
